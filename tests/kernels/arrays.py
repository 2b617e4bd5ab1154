"""Hypothesis strategies of the kernel tests: pairs of arrays of one geometry, and slots of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from bench.micro.forms import FORMS, Shape, clone, make, packed
from kvmarket.layout.paged import SlotArray

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.uint8]

SHAPES = st.builds(
    Shape,
    family=st.sampled_from(sorted(FORMS)),
    block_size=st.sampled_from([8, 16, 32, 128, 1, 9]),
    heads=st.sampled_from([1, 2, 3, 8]),
    dim=st.sampled_from([1, 5, 8, 16, 24, 64]),
    dtype=st.sampled_from(DTYPES),
)


@st.composite
def pairs(draw: st.DrawFn, way: str = "pull") -> tuple[SlotArray, SlotArray]:
    """(source, destination), random bits in both; packed on the side that ``way`` asks for."""
    shape = draw(SHAPES)
    layers = draw(st.integers(1, 3))
    forms = st.sampled_from(sorted(FORMS[shape.family]))
    arrays = [make(draw(forms), shape, layers, draw(st.integers(1, 7)), seed=seed).array for seed in (1, 2)]
    if way != "pull":
        side = 1 if way == "pack" else 0
        arrays[side] = packed(arrays[side].layout, arrays[side].layout.slots, seed=3)
    return arrays[0], arrays[1]


@st.composite
def slots_of(draw: st.DrawFn, source: SlotArray, destination: SlotArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots in random order: none, one, some or all; destinations differ, and differ from sources in the same array."""
    if source is destination:
        order = draw(st.permutations(range(source.layout.slots)))
        count = draw(st.integers(0, len(order) // 2))
        return torch.tensor(order[:count], dtype=torch.int64), torch.tensor(order[count : 2 * count], dtype=torch.int64)
    places = draw(st.permutations(range(destination.layout.slots)))
    places = places[: draw(st.integers(0, len(places)))]
    ids = draw(st.lists(st.integers(0, source.layout.slots - 1), min_size=len(places), max_size=len(places)))
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(places, dtype=torch.int64)


def on(device: str, array: SlotArray) -> SlotArray:
    """A copy of the array's bytes on a device."""
    return SlotArray(array.layout, [segment.to(device, copy=True) for segment in array.segments])


__all__ = ["SHAPES", "clone", "on", "pairs", "slots_of"]
