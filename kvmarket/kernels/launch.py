"""Copy blocks with the kernel that suits the arrays' devices and the side that is packed."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from kvmarket.kernels.addresses.slots import check_slots, check_sums, checksums_fit
from kvmarket.kernels.addresses.tables import table_of
from kvmarket.kernels.checksum import checksum_reference
from kvmarket.kernels.reference import pull_reference
from kvmarket.layout.paged import SlotArray


def copy_blocks(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    """Copy blocks ``source_slots[i]`` to slots ``destination_slots[i]``, between any two layouts of one geometry.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    On GPUs: launches on the current stream of the destination's device and returns at once; arrays and tensors must
    live until the copy is done. ``programs`` bounds the programs that run at a time; the default assumes a source on
    the same device if one side is packed, else a source on a peer. On CPUs: done on return (by the torch reference, or
    by the kernels if triton was imported with TRITON_INTERPRET=1). ``sums``, allowed where one side is packed: zeroed
    int64, one per block; the block's checksum is added to it. Raises LayoutError, SlotError, or MisuseError where the
    kernels cannot run on the device, before anything moves.
    """
    if destination.device.type == "cpu" and not is_interpreted():
        check_slots(source, source_slots, destination, destination_slots)
        if sums is not None:
            check_sums(sums, source, destination, source_slots, align_of(source, destination))
        pull_reference(source, source_slots, destination, destination_slots)
        if sums is not None:
            sums += checksum_reference(destination, destination_slots)
    else:
        kernel = _kernel(source, destination)
        kernel(source, source_slots, destination, destination_slots, programs=programs, sums=sums)


def prepare(source: SlotArray, destination: SlotArray) -> None:
    """Build the table and compile the kernel for a pair of arrays, so that its first copy need not. Takes seconds."""
    none = torch.empty(0, dtype=torch.int64, device=destination.device)
    copy_blocks(source, none, destination, none)
    if can_sum(source, destination):
        copy_blocks(source, none, destination, none, sums=none)


def can_sum(source: SlotArray, destination: SlotArray) -> bool:
    """Whether a copy between these arrays can sum checksums: one side is packed, all fragments are 4-byte aligned."""
    packed = source.layout.packed or destination.layout.packed
    return packed and checksums_fit(align_of(source, destination))


def align_of(source: SlotArray, destination: SlotArray) -> int:
    """The power of two up to 16 that divides every address and length of a copy between these arrays."""
    return table_of(source, destination).align


def _kernel(source: SlotArray, destination: SlotArray) -> Callable[..., None]:
    from kvmarket.kernels.pack import pack
    from kvmarket.kernels.pull import pull
    from kvmarket.kernels.scatter import scatter

    if source.layout.packed == destination.layout.packed:
        return pull
    return pack if destination.layout.packed else scatter


def is_interpreted() -> bool:
    """Say whether the kernels run in Triton's interpreter. Imports triton only if TRITON_INTERPRET is 1."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from kvmarket.kernels.tile import interpreted

    return interpreted()
