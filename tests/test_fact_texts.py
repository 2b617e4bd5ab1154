"""Facts for people: short, printable, bounded, and different wherever the values are."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import PurePosixPath

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given

from kvmarket import Fingerprint
from kvmarket.errors import FingerprintError
from kvmarket.fact_texts import MOST_FACTS, OTHERS, described, fact
from kvmarket.registry.protocol.status import MAX_FACT_NAME, MAX_FACT_TEXT, MAX_FACTS, Fact
from tests.test_fingerprint import facts, values


@dataclasses.dataclass
class Rope:
    """What holds facts by name."""

    theta: float
    kind: str = "linear"


class Sizes(msgspec.Struct):
    """So does this."""

    layers: int


class Kind(enum.Enum):
    """One whose value says little."""

    GQA = 7


class Loud(int):
    """One that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def texts(**given: object) -> dict[str, str]:
    return {each.name: each.text for each in described(given)}


def test_facts_do_not_count_for_equality():
    given = Fingerprint.of(model="m", dtype=torch.float16)
    bare = Fingerprint(given.hex)
    assert given.facts and not bare.facts
    assert given == bare and hash(given) == hash(bare) and repr(given) == repr(bare)
    assert given != Fingerprint("0" * 32) and given != given.hex
    assert given.hex == "2de9656fd58128dfeef40ca8fc564f8a", "as it was before facts were described"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.bfloat16, "bfloat16"),
        (None, "None"),
        (True, "True"),
        (-12, "-12"),
        (1e6, "1000000.0"),
        ("", "empty"),
        (b"abc", "3 bytes"),
        (Kind.GQA, "GQA"),
        (PurePosixPath("a/b"), "a/b"),
        (Rope, f"{Rope.__module__}.Rope"),
        ([1, "b", None], "[1, b, None]"),
        ({3, 1}, "{1, 3}"),
        (np.zeros((2, 3), np.float32), "float32 array of shape (2, 3)"),
        (torch.zeros(4), "float32 array of shape (4,)"),
        ("[(0, '0123456789abcdef0123456789abcdef')]", "[(0, '01234567…')]"),
        ("x" * 100, "x" * 63 + "…"),
        ("\x1b[31mred\n", "?[31mred?"),
    ],
)
def test_a_value_as_a_text(value: object, text: str):
    assert texts(x=value) == {"x": text}


def test_numbers_that_have_no_text_of_their_own():
    assert texts(x=Loud(7), y=1 << 20000) == {"x": "7", "y": f"0x1{'0' * 60}…"}


def test_what_is_held_by_name_is_a_fact_of_its_own():
    found = texts(b={"rope": Rope(1e4), "sizes": Sizes(2), "none": {}}, a=[{"device": "cpu"}, {"device": "cuda"}])
    assert found == {
        "a.0.device": "cpu",
        "a.1.device": "cuda",
        "b.rope.theta": "10000.0",
        "b.rope.kind": "linear",
        "b.sizes.layers": "2",
        "b.none": "{}",
    }


@pytest.mark.parametrize("name", ["api_key", "hf_token", "environment.SERVER_PASSWORD", "secrets"])
def test_what_is_called_a_secret_is_not_shown(name: str):
    shown = fact(name, "hunter2")
    assert "hunter2" not in shown.text and shown.digest.hex()[:8] in shown.text
    assert fact("bos_token", "<s>").text == "<s>"


@given(facts, values)
def test_digests_are_equal_exactly_when_values_are(given_facts: dict[str, object], value: object):
    found = described(given_facts)
    assert found == described(dict(reversed(given_facts.items())))
    for name, had in given_facts.items():
        changed = {each.name: each.digest for each in described({**given_facts, name: value})}
        same = Fingerprint.of(x=had) == Fingerprint.of(x=value)
        assert same == (changed == {each.name: each.digest for each in found})


def test_texts_that_are_alike_have_other_digests():
    one, other = fact("x", 1), fact("x", "1")
    assert one.text == other.text and one.digest != other.digest
    assert fact("x", "y" * 100 + "a").digest != fact("x", "y" * 100 + "b").digest


@pytest.mark.parametrize(
    "many",
    [
        {f"f{number}": number for number in range(3 * MOST_FACTS)},
        {"f": {str(number): number for number in range(3 * MOST_FACTS)}},
        {f"f{number}": {f"g{each}": each for each in range(40)} for number in range(40)},
        {"f" * 1000: "\U00012000" * 1000},
    ],
)
def test_facts_are_bounded_and_none_is_left_out(many: dict[str, object]):
    found = described(many)
    assert len(found) <= MOST_FACTS < MAX_FACTS
    assert all(len(each.name) <= MAX_FACT_NAME and len(each.text) <= MAX_FACT_TEXT for each in found)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=tuple[Fact, ...]) == found
    name = max(many)
    changed = described({**many, name: "another"})
    assert {each.digest for each in changed} != {each.digest for each in found}


def test_facts_beyond_the_bound_are_summed_up():
    found = described({f"f{number:04}": number for number in range(MOST_FACTS + 1)})
    assert found[-1].name == OTHERS and found[-1].text == "2 values"


def test_a_fact_that_holds_itself_is_refused():
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(FingerprintError, match="holds itself"):
        Fingerprint.of(x=endless)
