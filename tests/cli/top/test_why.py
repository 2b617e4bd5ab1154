"""`kvmarket top --why`: which facts keep engines apart."""

from __future__ import annotations

import os

import pytest
import torch

from kvmarket import Fingerprint
from kvmarket.cli.top import ask_status, top
from kvmarket.cli.top.why import MOST_SHOWN, comparison_of, lines_of_differences
from kvmarket.fact_texts import fact
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import MemberStatus, SpaceStatus, Status
from tests.cli.shown import lines_of
from tests.model_engine import ModelEngine


def space(
    name: str = "s", kind: str = "shm", ranks: str = "1", shape: str = "4 tokens", **facts: object
) -> SpaceStatus:
    """A space of engines with these facts; with none, one whose engines have told no facts of their fingerprint."""
    fingerprint = Fingerprint.of(**facts) if facts else Fingerprint("0" * 32)
    told = {
        "fingerprint": fingerprint.hex,
        "kind of memory": kind,
        "ranks of each stage": ranks,
        "shape of a block": shape,
    }
    return SpaceStatus(name, (*(fact(*each) for each in told.items()), *fingerprint.facts))


def why(one: SpaceStatus, other: SpaceStatus) -> list[str]:
    return list(lines_of_differences(one, other))


def test_facts_that_differ_are_named_with_both_values():
    weights = [f"[(0, '{digits * 4}')]" for digits in ("0123abcd", "4567cdef")]
    one = space(dtype=torch.float16, weights=weights[0], cfg={"rope": {"theta": 1.5}, "layers": 32})
    other = space(dtype=torch.bfloat16, weights=weights[1], cfg={"rope": {"theta": 2.5}, "layers": 32}, code="c")
    assert why(one, other) == [
        "dtype is float16 / bfloat16",
        "weights is [(0, '0123abcd…')] / [(0, '4567cdef…')]",
        "code is not given / c",
        "cfg.rope.theta is 1.5 / 2.5",
    ]


def test_memory_ranks_and_geometry_are_named():
    one, other = space(model="m"), space(kind="cuda", ranks="2+2", shape="8 tokens", model="m")
    assert why(one, other) == [
        "kind of memory is shm / cuda",
        "ranks of each stage is 1 / 2+2",
        "shape of a block is 4 tokens / 8 tokens",
    ]


def test_values_of_one_text_are_told_apart_by_their_digests():
    one, other = fact("x", 1).digest.hex()[:8], fact("x", "1").digest.hex()[:8]
    assert why(space(x=1), space(x="1")) == [f"x is 1 (digest {one}) / 1 (digest {other})"]


def test_a_fingerprint_without_facts_is_told_from_another():
    one = space()
    digits = Fingerprint.of(model="m").hex[:8]
    assert why(one, space(model="m")) == ["model is not given / m"]
    other = SpaceStatus("t", (fact("fingerprint", Fingerprint.of(model="m").hex), *one.facts[1:]))
    assert why(one, other) == [f"fingerprint is 00000000… / {digits}…, and no facts of it differ"]
    assert why(SpaceStatus("t"), one) == ["their facts are not told: the service tells those of its first spaces alone"]


def test_a_fact_of_an_engine_that_is_called_as_one_of_ours_hides_none():
    one, other = space(), space(kind="cuda")
    named = fact("kind of memory", "shm")
    assert why(SpaceStatus("s", (*one.facts, named)), SpaceStatus("t", (*other.facts, named))) == [
        "kind of memory is shm / cuda"
    ]


def test_of_many_facts_the_first_are_shown():
    found = why(space(**{f"f{n}": n for n in range(50)}), space(**{f"f{n}": -n - 1 for n in range(50)}))
    assert len(found) == MOST_SHOWN + 1 and found[-1] == f"and {50 - MOST_SHOWN} more facts"


def compared(*spaces: SpaceStatus, pids: str) -> list[str]:
    """What is printed for these spaces; `pids` are those of each, by commas."""
    members = [
        MemberStatus(int(pid), each.name, 1, 0)
        for each, group in zip(spaces, pids.split(), strict=True)
        for pid in group.split(",")
    ]
    return lines_of(comparison_of(Status(Process(7, 1, 1), tuple(members), 0, {}, spaces)))


def test_every_pair_of_spaces_is_compared():
    three = space("a", dtype="x"), space("b", dtype="y"), space("c", dtype="z")
    assert compared(*three, pids="1,3 2 4") == [
        "pids 1, 3 and pid 2 do not share:",
        "  dtype is x / y",
        "pids 1, 3 and pid 4 do not share:",
        "  dtype is x / z",
        "pid 2 and pid 4 do not share:",
        "  dtype is y / z",
    ]


def test_one_space_and_none():
    assert compared(space("a"), pids="1,2") == ["pids 1, 2 are all in one space, and share"]
    assert compared(space("a"), pids="1") == ["pid 1 is alone in the market"]
    assert compared(pids="") == ["no engine has joined"]


def test_long_facts_are_whole_at_80_columns():
    words = [["first" + "x" * 50, "second" + "y" * 50], ["third" + "x" * 50, "fourth" + "y" * 50]]
    lines = compared(space("a", a=words[0][0], **{"configuration": {"[bold]": words[0][1]}}),
                     space("b", a=words[1][0], **{"configuration": {"[bold]": words[1][1]}}), pids="1 2")  # fmt: skip
    assert {word for each in words for word in each} | {"configuration.[bold]"} <= set(" ".join(lines).split())
    assert all(line.startswith("  ") for line in lines[1:]), "those that go on too"


def test_engines_of_a_real_market(own_address: str, capsys: pytest.CaptureFixture[str]):
    one = ModelEngine(own_address, facts={"model": "m", "dtype": torch.float16})
    other = ModelEngine(own_address, facts={"model": "m", "dtype": torch.bfloat16})
    try:
        top(own_address, 1.0, once=False, why=True)
        assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
            f"pid {os.getpid()} and pid {os.getpid()} do not share:",
            "  dtype is float16 / bfloat16",
        ]
        assert {member.label.model for member in ask_status(Address(own_address)).members} == {"m"}
    finally:
        one.close()
        other.close()
