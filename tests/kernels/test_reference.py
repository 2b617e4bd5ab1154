"""The torch reference against logical content: the same content packs to the same bytes, whatever the form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.micro.forms import CASES, FORMS, Shape, clone, make, packed
from kvmarket.errors import LayoutError, SlotError
from kvmarket.kernels import copy_blocks, launch, pack_reference, prepare, pull_reference, scatter_reference
from kvmarket.kernels.checksum import checksum_reference
from kvmarket.layout.paged import WORDS
from tests.bitwise import assert_bitwise, assert_same_blocks
from tests.kernels.arrays import SHAPES, pairs, slots_of


def content_of(shape: Shape, layers: int, slots: int) -> torch.Tensor:
    """Random logical content (layers, slots, ...) as integers."""
    count = layers * slots * torch.Size(shape.logical()).numel() * shape.dtype.itemsize
    bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return bits.view(WORDS[shape.dtype.itemsize]).view(layers, slots, *shape.logical())


@given(shape=SHAPES, layers=st.integers(1, 3), slots=st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equal_content_packs_to_equal_bytes(shape: Shape, layers: int, slots: int):
    content = content_of(shape, layers, slots)
    every = torch.arange(slots)
    canonical = content.movedim(0, 1).contiguous().view(torch.uint8).view(-1)
    for name in FORMS[shape.family]:
        made = make(name, shape, layers, slots)
        made.fill(content)
        bundle = packed(made.cache.layout, slots, seed=9)
        pack_reference(made.array, every, bundle, every)
        assert torch.equal(bundle.segments[0], canonical), name


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_there_and_back(data: st.DataObject):
    """Pack, scatter into another form, pull from there into the first: the same blocks."""
    source, middle = data.draw(pairs("pull"))
    ids, places = data.draw(slots_of(source, middle))
    bundle = packed(source.layout, max(1, len(ids)), seed=9)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    pack_reference(source, ids, bundle, order)
    scatter_reference(bundle, order, middle, places)
    back = clone(source)
    for segment in back.segments:
        segment.bitwise_not_()
    unique = {int(slot): number for number, slot in enumerate(ids)}
    keep = torch.tensor(list(unique.values()), dtype=torch.int64)
    pull_reference(middle, places[keep], back, ids[keep])
    assert_same_blocks(back, ids, source, ids)


@given(data=st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_nothing_else_changes(data: st.DataObject):
    """What is written twice with different bytes around it differs nowhere but around it."""
    source, destination = data.draw(pairs("pull"))
    ids, places = data.draw(slots_of(source, destination))
    other = clone(destination)
    for segment in other.segments:
        segment.bitwise_not_()
    pull_reference(source, ids, destination, places)
    pull_reference(source, ids, other, places)
    written = sum(int((here == there).sum()) for here, there in zip(destination.segments, other.segments, strict=True))
    assert written == len(ids) * source.layout.slot_bytes


@pytest.mark.parametrize(
    ("ids", "places"),
    [
        ([4, 5, 6, 0, 11, 10, 1, 2], [7, 8, 9, 0, 1, 2, 3, 4]),
        ([4, 5, 6, 7], [2, 3, 9, 10]),
        ([4, 5, 6, 7], [5, 4, 3, 2]),
        ([7, 6, 5, 4], [2, 3, 4, 5]),
        ([1, 2, 3, 3, 4], [8, 9, 10, 11, 0]),
        (range(12), range(12)),
    ],
)
@pytest.mark.parametrize("case", [CASES[10], CASES[15]], ids=lambda case: case.name)
def test_runs_of_slots_and_single_slots_agree(case, ids, places):
    """Long blocks are copied run by run, short ones by index."""
    source, destination = case.arrays(layers=2, slots=12)
    ids, places = torch.tensor(ids), torch.tensor(places)
    one_by_one = clone(destination)
    pull_reference(source, ids, destination, places)
    for index in range(len(ids)):
        pull_reference(source, ids[index : index + 1], one_by_one, places[index : index + 1])
    assert_bitwise(destination, one_by_one)
    assert torch.equal(checksum_reference(destination, places), checksum_reference(source, ids))


def test_copy_blocks_takes_the_reference_on_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delattr(launch, "_kernel")
    source, destination = CASES[11].arrays(layers=2, slots=4)
    expected = clone(destination)
    ids, places = torch.tensor([3, 0]), torch.tensor([1, 2])
    pull_reference(source, ids, expected, places)
    copy_blocks(source, ids, destination, places)
    assert_bitwise(destination, expected)
    copy_blocks(source, ids[:0], destination, places[:0])
    prepare(source, destination)
    assert_bitwise(destination, expected)
    with pytest.raises(SlotError, match="pass ids from 0"):
        copy_blocks(source, ids, destination, torch.tensor([0, 4]))


def test_copies_on_cpus_sum_what_they_copied_or_move_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delattr(launch, "_kernel")
    source, destination = CASES[0].arrays(layers=2, slots=4)
    before = clone(destination)
    ids, places = torch.tensor([3, 0]), torch.tensor([1, 2])
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)):
        with pytest.raises(SlotError, match="one per block"):
            copy_blocks(source, ids, destination, places, sums=wrong)
    with pytest.raises(SlotError, match="2 source slots for 1"):
        copy_blocks(source, ids, destination, places[:1])
    assert_bitwise(destination, before)
    sums = torch.zeros(2, dtype=torch.int64)
    copy_blocks(source, ids, destination, places, sums=sums)
    assert sums.tolist() == checksum_reference(source, ids).tolist()
    assert torch.equal(checksum_reference(destination, places), checksum_reference(source, ids))


def test_refuses_what_is_not_packed():
    paged, bundle = CASES[0].arrays(layers=1, slots=2)
    one = torch.tensor([0])
    with pytest.raises(LayoutError, match="packed destination"):
        pack_reference(bundle, one, paged, one)
    with pytest.raises(LayoutError, match="packed source"):
        scatter_reference(paged, one, bundle, one)
    with pytest.raises(LayoutError, match="do not fit"):
        pull_reference(make("nhd_pair", Shape("kv", 16, 8, 64), 1, 2).array, one, bundle, one)
