"""Slots further from the start of their memory than 32 bits reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvmarket.kernels import copy_blocks, fragments, pack_reference, pull_reference
from kvmarket.kernels.pack import pack
from kvmarket.kernels.pull import pull
from kvmarket.kernels.scatter import scatter
from kvmarket.kernels.tile import interpreted
from kvmarket.layout.paged import PagedCache, SlotArray
from tests.bitwise import assert_same_blocks

SLOTS, STRIDE = 5000, 1 << 20  # the last slot starts near 5 GiB
# Triton's interpreter up to 3.6 makes integers of one-element arrays, of which NumPy 1.25 and later warn.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def cache_over(memory: torch.Tensor) -> PagedCache:
    """Two layers of pages of 2 x 4 KiB, 1 MiB apart, in ``SLOTS`` slots."""
    words = memory.view(torch.bfloat16)
    sizes, strides = (SLOTS, 2, 16, 2, 64), (STRIDE // 2, 2048, 128, 64, 1)
    return PagedCache([words.as_strided(sizes, strides, offset) for offset in (0, 8192)])


@pytest.fixture
def sparse(tmp_path: Path) -> torch.Tensor:
    """5 GiB of zeros of which only the touched pages exist."""
    return torch.from_file(str(tmp_path / "sparse"), shared=True, size=SLOTS * STRIDE, dtype=torch.uint8)


def fill(array: SlotArray, slots: torch.Tensor) -> None:
    """Random bits in the given slots."""
    generator = torch.Generator(array.device).manual_seed(5)
    for view in array.part_views():
        bits = torch.randint(-30000, 30000, (len(slots), *view.shape[1:]), device=array.device, generator=generator)
        view[slots] = bits.to(view.dtype)


def check_far_slots(array: SlotArray, compiled: bool) -> None:
    """Pack from, pull to and scatter to slots beyond 2 and 4 GiB."""
    far = torch.tensor([4999, 0, 2500, 4100], device=array.device)
    free = torch.tensor([4998, 4097, 2049, 1], device=array.device)
    order = torch.arange(4, device=array.device)
    fill(array, far)
    layout = array.layout.as_packed(4)
    bundle = SlotArray(layout, [torch.zeros(layout.segments[0], dtype=torch.uint8, device=array.device)])
    (pack if compiled else copy_blocks)(array, far, bundle, order)
    (scatter if compiled else copy_blocks)(bundle, order, array, free)
    assert_same_blocks(array, free, array, far)
    (pull if compiled else copy_blocks)(array, far, array, free.flip(0))
    assert_same_blocks(array, free.flip(0), array, far)


def test_offsets_past_4_gib_on_the_cpu(sparse: torch.Tensor):
    array = cache_over(sparse).slot_array()
    far, near = torch.tensor([4999, 4096, 2048]), torch.tensor([0, 1, 2])
    fill(array, far)
    layout = array.layout.as_packed(3)
    bundle = SlotArray(layout, [torch.zeros(layout.segments[0], dtype=torch.uint8)])
    pack_reference(array, far, bundle, near)
    expected = b"".join(
        bytes(sparse[slot * STRIDE + start : slot * STRIDE + start + 8192].tolist())
        for slot in far.tolist()
        for start in (0, 16384)
    )
    assert bytes(bundle.segments[0].tolist()) == expected
    pull_reference(array, far, array, near)
    assert_same_blocks(array, near, array, far)
    plan = fragments(array.layout, array.layout)
    assert (plan.length, len(plan)) == (8192, 2)


def test_kernels_past_4_gib_interpreted(sparse: torch.Tensor):
    if not interpreted():
        pytest.skip("Triton compiles for GPUs in this process; set TRITON_INTERPRET=1 to run the kernels on the CPU")
    check_far_slots(cache_over(sparse).slot_array(), compiled=True)


@pytest.mark.gpu
def test_kernels_past_4_gib_on_the_gpu():
    if interpreted():
        pytest.skip("TRITON_INTERPRET is set; unset it to compile the kernels")
    memory = torch.empty(SLOTS * STRIDE, dtype=torch.uint8, device="cuda")
    check_far_slots(cache_over(memory).slot_array(), compiled=True)
    check_far_slots(cache_over(memory).slot_array(), compiled=False)
