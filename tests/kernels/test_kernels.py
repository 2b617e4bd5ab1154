"""pack, scatter and pull against the torch reference, bit by bit, gaps included; interpreted where there is no GPU."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

if not torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bench.micro.forms import CASES, Case, Shape, clone, make
from kvmarket.errors import LayoutError, MisuseError, SlotError
from kvmarket.kernels import copy_blocks, pack_reference, prepare, pull_reference, scatter_reference, tile
from kvmarket.kernels.pack import pack
from kvmarket.kernels.pull import pull
from kvmarket.kernels.scatter import scatter
from kvmarket.kernels.shape import LINK, LOCAL, SMALL_LINK, SUMMING_LINK, Program, constants_of, program_of, tile_of
from kvmarket.kernels.tile import interpreted
from kvmarket.layout.paged import SlotArray
from tests.bitwise import assert_bitwise
from tests.kernels.arrays import on, pairs, slots_of

KERNELS = {"pack": (pack, pack_reference), "scatter": (scatter, scatter_reference), "pull": (pull, pull_reference)}
# Triton's interpreter up to 3.6 makes integers of one-element arrays, of which NumPy 1.25 and later warn.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def check(
    way: str,
    source: SlotArray,
    destination: SlotArray,
    ids: torch.Tensor,
    places: torch.Tensor,
    device: str,
    programs: int | None = None,
) -> None:
    """Run kernel and reference on equal copies; everything that should not change must not."""
    kernel, reference = KERNELS[way]
    there = on(device, source)
    here = there if source is destination else on(device, destination)
    kernel(there, ids.to(device), here, places.to(device), programs=programs)
    before, expected = clone(source), clone(destination)
    reference(before, ids, before if source is destination else expected, places)
    expected = before if source is destination else expected
    assert_bitwise(on("cpu", here), expected)
    if source is not destination:
        assert_bitwise(on("cpu", there), source)


@pytest.mark.parametrize("way", sorted(KERNELS))
@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_reference(way: str, device: str, data: st.DataObject):
    source, destination = data.draw(pairs(way))
    ids, places = data.draw(slots_of(source, destination))
    check(way, source, destination, ids, places, device, data.draw(st.sampled_from([None, 1, 3])))


@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_within_one_array(device: str, data: st.DataObject):
    source, _ = data.draw(pairs("pull"))
    ids, places = data.draw(slots_of(source, source))
    check("pull", source, source, ids, places, device)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(case: Case, device: str):
    source, destination = case.arrays(layers=2, slots=5)
    generator = torch.Generator().manual_seed(7)
    ids, places = torch.randperm(5, generator=generator), torch.randperm(5, generator=generator)
    check(case.name.split()[0], source, destination, ids, places, device)
    check(case.name.split()[0], source, destination, ids[:1], places[:1], device)


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
def test_segments_at_odd_addresses(shift: int, device: str):
    """Layouts that promise 16 bytes, on memory that does not keep it."""
    made = make("nhc", Shape("fused", 8, 2, 16, torch.uint8), 2, 4).array
    shifted = []
    for segment in made.segments:
        memory = torch.zeros(segment.numel() + 16, dtype=torch.uint8, device=device)
        view = memory[(shift - memory.data_ptr()) % 16 :][: segment.numel()]
        shifted.append(view.copy_(segment))
    source = SlotArray(made.layout, shifted)
    destination, expected = on(device, made), clone(made)
    ids, places = torch.tensor([3, 1]), torch.tensor([0, 2])
    pull(source, ids.to(device), destination, places.to(device))
    pull_reference(made, ids, expected, places)
    assert_bitwise(on("cpu", destination), expected)


@pytest.mark.parametrize("case", [CASES[0], CASES[17]], ids=lambda case: case.name)
def test_counts_of_64_bits(case: Case, device: str, monkeypatch: pytest.MonkeyPatch):
    """The kernel for more than 2**31 chunks, on fewer."""
    monkeypatch.setattr(tile, "constants_of", lambda shape, **flags: constants_of(shape, **{**flags, "wide": True}))
    source, destination = case.arrays(layers=2, slots=4)
    ids = torch.tensor([3, 0, 2])
    check(case.name.split()[0], source, destination, ids, ids.flip(0), device, programs=2)


def test_slot_tensors_may_be_slices(device: str):
    source, destination = CASES[0].arrays(layers=1, slots=6)
    ids = torch.arange(6).flip(0)
    for start in range(4):
        check("pack", source, destination, ids[start:], ids[: 6 - start], device)


def test_prepare_moves_nothing(device: str):
    source, destination = (on(device, array) for array in CASES[0].arrays(layers=1, slots=3))
    before = clone(destination)
    prepare(source, destination)
    assert_bitwise(destination, before)


def test_tables_die_with_their_arrays(device: str):
    from kvmarket.kernels.addresses.tables import table_of

    source, destination = (on(device, array) for array in CASES[0].arrays(layers=1, slots=3))
    table = table_of(source, destination)
    assert table_of(source, destination) is table
    assert len(table_of._made[destination]) == 1
    other = clone(source)
    table_of(other, destination)
    del other
    assert len(table_of._made[destination]) == 1
    held = len(table_of._made)
    del destination
    assert len(table_of._made) == held - 1


@pytest.mark.parametrize("program", [LINK, SUMMING_LINK, SMALL_LINK, LOCAL])
@pytest.mark.parametrize("length", [1, 3, 48, 512, 640, 2048, 18432, 65536, 2 << 20])
def test_tiles_are_full(length: int, program: Program):
    align = (length | 16) & -(length | 16)
    shape = tile_of(length, align, program)
    words = length // shape.word
    covered = -(-words // shape.columns) * shape.columns
    assert shape.rows * shape.columns == program.tile_bytes // 4
    assert shape.columns % shape.piece == 0
    assert shape.exact == (covered == words)
    assert covered < 2 * words
    if words % 32 == 0:
        assert shape.exact and shape.columns >= 32


def test_large_programs_are_for_large_fragments():
    chosen = [program_of(length, 16, LINK, SMALL_LINK) for length in (512, 2048, 4096, 65536, 2 << 20)]
    assert chosen == [SMALL_LINK, SMALL_LINK, LINK, LINK, LINK]


def test_misuse(device: str):
    paged, bundle = (on(device, array) for array in CASES[0].arrays(layers=1, slots=3))
    one = torch.tensor([0], device=device)
    with pytest.raises(LayoutError, match="packed destination"):
        pack(bundle, one, paged, one)
    with pytest.raises(LayoutError, match="packed source"):
        scatter(paged, one, bundle, one)
    with pytest.raises(SlotError, match="as many"):
        copy_blocks(paged, torch.tensor([0, 1], device=device), bundle, one)
    with pytest.raises(SlotError, match="int64"):
        copy_blocks(paged, one.int(), bundle, one)
    other = on(device, make("nhd_pair", Shape("kv", 16, 8, 64), 1, 3).array)
    with pytest.raises(LayoutError, match="do not fit"):
        copy_blocks(other, one, bundle, one)
    if device == "cpu":
        for wrong in (-1, 3):
            with pytest.raises(SlotError, match="pass ids from 0"):
                copy_blocks(paged, one, bundle, torch.tensor([wrong]))


@pytest.mark.gpu
def test_interpreted_kernels_refuse_the_gpu_and_compiled_ones_the_cpu():
    where = "cuda" if interpreted() else "cpu"
    paged, bundle = (on(where, array) for array in CASES[0].arrays(layers=1, slots=3))
    one = torch.tensor([0], device=where)
    with pytest.raises(MisuseError, match="TRITON_INTERPRET"):
        pack(paged, one, bundle, one)
