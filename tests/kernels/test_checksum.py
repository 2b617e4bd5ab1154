"""The checksum of a block is the same by the kernels and by the reference, in every layout, and sees damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.micro.forms import CASES, Case, packed
from kvmarket.errors import LayoutError, SlotError
from kvmarket.kernels import can_sum, copy_blocks, pull_reference
from kvmarket.kernels.checksum import FIRST_KEY, KEY_STEP, SEED, agree, checksum_reference, finish
from kvmarket.kernels.pack import pack
from kvmarket.kernels.pull import pull, pull_launcher
from kvmarket.kernels.scatter import scatter
from kvmarket.kernels.tile import PER_UNIT
from kvmarket.layout.paged import SlotArray
from tests.bitwise import assert_bitwise
from tests.kernels.arrays import on, pairs, slots_of

KERNELS = {"pack": pack, "scatter": scatter, "pull": pull}
SUMMED = [case for case in CASES if "packed" in (case.source, case.destination)]


def by_definition(data: bytes) -> int:
    """The sum of the module's docstring, in Python's integers."""
    words = np.frombuffer(data, "<u4").tolist()
    return sum(word * ((i * KEY_STEP + FIRST_KEY) % 2**32) for i, word in enumerate(words)) % 2**64


def test_checksums_are_those_of_every_other_version():
    """Engines of two versions compare them."""
    array = SlotArray(packed(CASES[0].arrays(1, 1)[0].layout, 1).layout, [torch.arange(65536).to(torch.uint8)])
    assert finish(checksum_reference(array, torch.tensor([0]))).tolist() == [0x37CE3D6302CFC15]
    assert finish(np.zeros(1, np.int64)).tolist() == [0x9E3779B97F4A7C15]


def summed(name: str, source: SlotArray, destination: SlotArray, ids: torch.Tensor, places: torch.Tensor, device: str):
    """The sums of a kernel's copy, which also poisons nothing but its destination."""
    source, destination = on(device, source), on(device, destination)
    sums = torch.zeros(len(ids), dtype=torch.int64, device=device)
    KERNELS[name](source, ids.to(device), destination, places.to(device), programs=2, sums=sums)
    return sums.cpu(), on("cpu", destination)


@pytest.mark.parametrize("case", SUMMED, ids=lambda case: case.name)
def test_kernels_sum_what_the_reference_sums(case: Case, device: str):
    source, destination = case.arrays(layers=2, slots=5)
    ids, places = torch.tensor([3, 0, 4]), torch.tensor([1, 4, 2])
    sums, after = summed(case.name.split()[0], source, destination, ids, places, device)
    assert sums.tolist() == checksum_reference(source, ids).tolist() == checksum_reference(after, places).tolist()


@pytest.mark.parametrize("case", [case for case in SUMMED if case.source == "packed"], ids=lambda case: case.name)
def test_sums_of_units_are_all_written_and_add_up_to_those_of_their_blocks(case: Case, device: str):
    source, target = case.arrays(layers=2, slots=5)
    ids, places = torch.tensor([3, 0, 4]), torch.tensor([1, 4, 2])
    packed_blocks, own = on(device, source), on(device, target)
    run = pull_launcher(packed_blocks, own)
    sums = torch.full((len(ids) * run.units + 1,), -7, dtype=torch.int64, pin_memory=device != "cpu")
    stream = 0 if device == "cpu" else torch.cuda.current_stream().cuda_stream
    run(ids.to(device), places.to(device), len(ids), 2, sums, stream, PER_UNIT)
    if device != "cpu":
        torch.cuda.current_stream().synchronize()
    assert sums[:-1].view(len(ids), -1).sum(1).tolist() == checksum_reference(source, ids).tolist()
    assert sums[-1] == -7, "and no more than those"
    pull_reference(source, ids, target, places)
    assert_bitwise(on("cpu", own), target)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_any_layout(data: st.DataObject):
    way = data.draw(st.sampled_from(["pack", "scatter"]))
    source, destination = data.draw(pairs(way))
    ids, places = data.draw(slots_of(source, destination))
    if can_sum(source, destination):
        sums = torch.zeros(len(ids), dtype=torch.int64)
        copy_blocks(source, ids, destination, places, sums=sums)
        assert sums.tolist() == checksum_reference(source, ids).tolist()
    else:
        with pytest.raises(LayoutError, match="32-bit"):
            copy_blocks(source, ids, destination, places, sums=torch.zeros(len(ids), dtype=torch.int64))


def test_the_reference_is_the_definition():
    array = packed(SUMMED[0].arrays(1, 1)[0].layout, 3)
    size = array.layout.slot_bytes
    raw = array.segments[0].numpy().tobytes()
    expected = [by_definition(raw[slot * size : (slot + 1) * size]) for slot in (2, 0)]
    found = checksum_reference(array, torch.tensor([2, 0]))
    assert found.numpy().view(np.uint64).tolist() == expected
    assert finish(found).tolist() == [(one + SEED) % 2**64 for one in expected]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.integers(1, 255), st.integers(0, 2**20))
def test_damage_is_seen(at: int, flip: int, other: int):
    array = packed(SUMMED[0].arrays(1, 1)[0].layout, 1)
    data, whole = array.segments[0], torch.tensor([0])
    before = finish(checksum_reference(array, whole))
    data[at % data.numel()] ^= flip
    assert not agree(finish(checksum_reference(array, whole)), before).any(), "one byte"
    data[at % data.numel()] ^= flip
    words = data.view(torch.int32)
    a, b = at % len(words), other % len(words)
    different = bool(words[a] != words[b])
    words[[a, b]] = words[[b, a]]
    assert agree(finish(checksum_reference(array, whole)), before).all() != different, "two words exchanged"


def test_a_block_of_zeros_has_a_checksum_and_none_agrees_with_all():
    assert finish(torch.zeros(1, dtype=torch.int64)).tolist() == [SEED]
    assert agree(np.array([1, 2], np.uint64), np.array([0, 2], np.uint64)).tolist() == [True, True]


def test_misuse(device: str):
    paged, bundle = (on(device, array) for array in SUMMED[0].arrays(1, 2))
    one, total = torch.tensor([0], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(LayoutError, match="one side"):
        pull(paged, one, paged, one + 1, sums=total)
    for wrong in (total.int(), torch.zeros(2, dtype=torch.int64, device=device)):
        with pytest.raises(SlotError, match="one per block"):
            pack(paged, one, bundle, one, sums=wrong)
