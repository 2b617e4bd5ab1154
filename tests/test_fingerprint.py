"""Fingerprints: order does not matter, every fact does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvmarket import Fingerprint
from kvmarket.errors import FingerprintError

values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False), st.lists(st.integers())
)
facts = st.dictionaries(
    st.text(st.characters(categories=["Ll"]), min_size=1).map(lambda k: "f" + k), values, min_size=1
)


@given(facts)
def test_order_does_not_matter_and_every_fact_counts(given_facts):
    whole = Fingerprint.of(**given_facts)
    assert Fingerprint.of(**dict(reversed(given_facts.items()))) == whole
    for name in given_facts:
        assert Fingerprint.of(**{**given_facts, name: ("another",)}) != whole
        assert Fingerprint.of(**{**given_facts, "extra": given_facts[name]}) != whole


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        (b"x", "x"),
        (None, "None"),
        (["a,b"], ["a", "b"]),
        ({"a": 1}, [("a", 1)]),
        ([[1], 2], [1, [2]]),
    ],
)
def test_values_that_look_alike_differ(a, b):
    assert Fingerprint.of(x=a) != Fingerprint.of(x=b)


@pytest.mark.parametrize(
    ("a", "b"), [(1.5, 2.5), (0.0, -0.0), ({1}, {2}), ({8, 1}, {1, 9}), ({1}, [1]), ({"k": 1}, {"k": 2}), ([1], [2])]
)
def test_other_values_of_one_type_differ(a, b):
    assert Fingerprint.of(x=a) != Fingerprint.of(x=b)


@pytest.mark.parametrize(
    ("a", "b"),
    [({1, 8}, frozenset([8, 1])), ({8, 0}, {0, 8}), ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
)
def test_what_holds_the_same_agrees(a, b):
    assert Fingerprint.of(x=a) == Fingerprint.of(x=b)


def test_torch_dtypes_are_facts():
    assert Fingerprint.of(dtype=torch.bfloat16) != Fingerprint.of(dtype=torch.float16)


def test_equal_in_another_process():
    facts = "model='m', dtype=torch.bfloat16, n={1: {2, 3}}"
    code = f"import torch; from kvmarket import Fingerprint; print(Fingerprint.of({facts}).hex)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert other.stdout.strip() == Fingerprint.of(n={1: {3, 2}}, dtype=torch.bfloat16, model="m").hex


@pytest.mark.parametrize("bad", [{}, {"x": float("nan")}, {"x": object()}])
def test_what_cannot_be_hashed_is_refused(bad):
    with pytest.raises(FingerprintError):
        Fingerprint.of(**bad)


@pytest.mark.parametrize("bad", ["not one", "", "0" * 31, "0" * 33, "0" * 31 + "g", "A" * 32, "0" * 16 + " " * 16])
def test_only_a_digest_is_a_fingerprint(bad):
    with pytest.raises(FingerprintError, match=r"Fingerprint\.of"):
        Fingerprint(bad)
    assert Fingerprint("0123456789abcdef" * 2).hex == "0123456789abcdef" * 2


def test_a_fact_may_contain_what_looks_like_an_address():
    assert Fingerprint.of(x="mapped at 0x7f", y=b" at 0x1") != Fingerprint.of(x="mapped at 0x80", y=b" at 0x1")
