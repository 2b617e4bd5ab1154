"""Facts: equal for equal values in every process, different for different ones, refused where nobody can tell."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import os
import pathlib
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvmarket import Fingerprint
from kvmarket.errors import FingerprintError

BIG = np.arange(5000)
OTHER = BIG.copy()
OTHER[2500] = -1  # numpy and torch leave the middle out of their text


class Color(enum.Enum):
    RED = 1
    GREEN = 2


class Level(enum.IntEnum):
    RED = 1


class Number(int):
    def __repr__(self) -> str:
        return "a number"


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "a text"


@dataclasses.dataclass
class Config:
    size: int
    table: Any = None
    note: str = dataclasses.field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        return "a config"


class Message(msgspec.Struct):
    size: int


class Message2(msgspec.Struct):
    size: int


DISTINCT = [
    *(None, "None", 0, 1, -1, 10, 0x10, 10**5000, 10**5000 + 1, False, True, 0.0, -0.0, 1.0, math.inf, -math.inf, 1j),
    *(complex(0.0, 0.0), complex(0.0, -0.0), complex(-0.0, 0.0), "", "1", "a", "ab", "\ud83d", "\ud83e", "\U0001f600"),
    *(b"", b"1", b"a", bytearray(b"a"), Number(1), Number(2), Text("a"), Text("b"), Color.RED, Color.GREEN, Level.RED),
    *([], [[]], [1], [1, 1], ["1"], [1, [2]], [[1], 2], ["a,b"], ["a", "b"], (), (1,), ("a", "b"), ((1,),), [(1,)]),
    *(set(), {1}, {1, 2}, {1, "1", None, 1.5}, frozenset({(1, 2)}), {}, {"a": 1}, {"a": "1"}, {1: "a"}, [("a", 1)]),
    *({"a": {"b": 1}}, {"a": 1, "b": 1}, {"a b": 1}, {None: 1}, {("a", 1): 1}, {"a": None}),
    *(BIG, OTHER, BIG.astype(np.int32), BIG.reshape(50, 100), BIG.reshape(100, 50), BIG[:0], BIG[:0].reshape(0, 3)),
    *(BIG.astype(">i8"), np.float32(1), np.float64(1), np.int64(1), np.bool_(True), np.str_("a"), np.array(1)),
    *(np.array([math.nan]), np.array(["a"]), np.array(["a\0b"]), np.array([b"a"]), np.array([1], "M8[s]")),
    *(np.array([1], "M8[ms]"), np.zeros(1, [("a", "i4"), ("b", "i4")]), np.zeros(1, [("a", "i4"), ("c", "i4")])),
    *(torch.from_numpy(BIG), torch.from_numpy(OTHER), torch.from_numpy(BIG).float(), torch.zeros(2, 3)),
    *(torch.zeros(3, 2), torch.zeros(6), torch.zeros(6, dtype=torch.bfloat16), torch.zeros(()), -torch.zeros(6)),
    *(torch.zeros(6, dtype=torch.float8_e4m3fn), torch.zeros(6, dtype=torch.float8_e5m2), torch.zeros(0)),
    *(torch.tensor([1j]), torch.tensor([-1j]), torch.tensor([True]), torch.tensor([1], dtype=torch.uint8)),
    *(torch.float32, torch.float64, torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 0), torch.strided),
    *(torch.contiguous_format, np.dtype("int8"), np.dtype("int16"), np.dtype(">i2"), np.float32, dict, Config, int),
    *(Config(1), Config(2), Config(1, BIG), Config(1, OTHER), Config(1, note="x"), Message(1), Message2(1)),
    {"size": 1},
    *(pathlib.PurePosixPath("/a"), pathlib.PureWindowsPath("/a"), "/a", "int", "torch.float32"),
]  # fmt: skip


def test_different_values_have_different_fingerprints():
    seen: dict[str, Any] = {}
    for value in DISTINCT:
        text = Fingerprint.of(x=value).hex
        assert text not in seen, f"{value!r} and {seen[text]!r}"
        seen[text] = value


EQUAL = [
    ([1, 2], [1, 2]),
    ({"a": 1, "b": [2]}, OrderedDict(b=[2], a=1)),
    ({1, "a", None}, frozenset({None, "a", 1})),
    (BIG, BIG[::-1][::-1]),
    (BIG.reshape(50, 100), np.asfortranarray(BIG.reshape(50, 100))),
    (torch.from_numpy(BIG), torch.nn.Parameter(torch.from_numpy(BIG), requires_grad=False)),
    (torch.arange(6).view(2, 3), torch.arange(6).view(2, 3).t().contiguous().t()),
    (torch.tensor([1j]).conj(), torch.tensor([complex(0, -1)])),
    (torch.tensor([1j]).conj().imag, torch.tensor([-1.0])),
    (torch.Size([1, 2]), (1, 2)),
    (Config(1, [2]), Config(1, [2])),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values_have_equal_fingerprints(one, other):
    assert Fingerprint.of(x=one) == Fingerprint.of(x=other)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append({"a": value})
    return value


REFUSED = {
    "module": (lambda: torch.nn.Linear(2, 2), r"state_dict\(\)"),
    "object": (object, "its fields"),
    "function": (lambda: cyclic, "give its name"),
    "lambda": (lambda: lambda: 1, "give its name"),
    "generator": (lambda: (i for i in ()), "its fields"),
    "text of an address": (lambda: iter([]), "its fields"),
    "local class": (lambda: type("Local", (), {"__qualname__": "f.<locals>.Local"}), "name of your own"),
    "array of objects": (lambda: np.array([object()]), "list"),
    "NaN": (lambda: math.nan, "NaN"),
    "NaN in a list": (lambda: [1.0, math.nan], "NaN"),
    "NaN of numpy": (lambda: np.float32("nan"), "NaN"),
    "NaN, complex": (lambda: complex(0, math.nan), "NaN"),
    "meta tensor": (lambda: torch.zeros(2, device="meta"), "dense tensor"),
    "sparse tensor": (lambda: torch.zeros(2, 2).to_sparse(), "dense tensor"),
    "cycle": (cyclic, "holds itself"),
    "depth": (lambda: nested(100_000), "nested too deep"),
    "dict's view": (lambda: {}.keys(), "its fields"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_tell_apart_is_refused(name):
    make, error = REFUSED[name]
    with pytest.raises(FingerprintError, match=error):
        Fingerprint.of(x=make())
    with pytest.raises(FingerprintError):
        Fingerprint.of(x={"a": (make(),)})


def test_two_checkpoints_of_one_module():
    one, two = (torch.nn.Linear(8, 8).state_dict() for _ in range(2))
    assert Fingerprint.of(model=one) != Fingerprint.of(model=two)
    assert Fingerprint.of(model=one) == Fingerprint.of(model={key: value.clone() for key, value in one.items()})


def test_equal_in_another_process():
    facts = (
        "a=np.arange(5000), t=torch.arange(5000.), d={1: {2, 3}, 'b': None}, dtype=torch.bfloat16, p=pathlib.Path('/a')"
        ", s='\\ud83d', f=-0.0, c=np.float32, z={'a', 1, None, (2,)}"
    )
    code = f"import pathlib, numpy as np, torch; from kvmarket import Fingerprint; print(Fingerprint.of({facts}).hex)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    names = {"np": np, "torch": torch, "pathlib": pathlib}
    assert said == {eval(f"Fingerprint.of({facts})", {"Fingerprint": Fingerprint, **names}).hex}


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(st.characters()), st.binary(), st.floats(allow_nan=False)
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3), st.tuples(inner, inner)
    ),
    max_leaves=6,
)


def tagged(value: Any) -> Any:
    """`value` with the types that Python's own comparison passes over."""
    if isinstance(value, dict):
        return ("dict", frozenset((tagged(key), tagged(each)) for key, each in value.items()))
    if isinstance(value, list | tuple):
        return (type(value).__name__, tuple(map(tagged, value)))
    return (type(value).__name__, value.hex() if isinstance(value, float) else value)


@given(st.lists(trees, min_size=2, max_size=6))
def test_trees_are_equal_exactly_when_their_fingerprints_are(values):
    for one, other in itertools.combinations(values, 2):
        assert (tagged(one) == tagged(other)) == (Fingerprint.of(x=one) == Fingerprint.of(x=other))
