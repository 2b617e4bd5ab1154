"""Checks of the slot ids and of the tensor of sums that a copy is given."""

from __future__ import annotations

import torch

from kvmarket.errors import LayoutError, SlotError
from kvmarket.layout.paged import SlotArray


def check_slots(
    source: SlotArray, source_slots: torch.Tensor, destination: SlotArray, destination_slots: torch.Tensor
) -> None:
    """Raise SlotError unless both are 1-D int64 of one length on the destination's device, and on a CPU in range.

    On a GPU the ids are not read back, which would wait. Ids out of range there would address foreign memory: the
    caller must check them where it makes them.
    """
    for array, slots in ((source, source_slots), (destination, destination_slots)):
        if slots.dtype != torch.int64 or slots.ndim != 1 or slots.device != destination.device:
            raise SlotError(
                f"slots are {slots.dtype} {tuple(slots.shape)} on {slots.device}: "
                f"pass a 1-D int64 tensor on {destination.device}"
            )
        if slots.numel() and not slots.is_cuda:
            low, high = slots.aminmax()
            if low < 0 or high >= array.layout.slots:
                raise SlotError(f"slots {low} to {high} of an array of {array.layout.slots}: pass ids from 0 on")
    counts = (source_slots.numel(), destination_slots.numel())
    if counts[0] != counts[1]:
        raise SlotError(f"{counts[0]} source slots for {counts[1]} destinations: pass as many of both")


def check_sums(sums: torch.Tensor, source: SlotArray, destination: SlotArray, slots: torch.Tensor, align: int) -> None:
    """Raise unless ``sums`` can take the checksums of a copy: one int64 per block on the destination's device.

    Raises LayoutError where neither side is packed (the checksum is over packed bytes), or where fragments aligned to
    ``align`` bytes have no 32-bit words; SlotError for another dtype, shape or device. The values are not checked: the
    caller must zero them.
    """
    if not (source.layout.packed or destination.layout.packed):
        raise LayoutError("checksums are over packed bytes: one side of the copy must be packed")
    if not checksums_fit(align):
        raise LayoutError(f"fragments aligned to {align} bytes have no 32-bit words to sum: copy without checksums")
    if sums.dtype != torch.int64 or sums.shape != slots.shape or sums.device != destination.device:
        raise SlotError(f"sums are {sums.dtype} {tuple(sums.shape)} on {sums.device}: pass int64, one per block")


def checksums_fit(align: int) -> bool:
    """Whether fragments aligned to ``align`` bytes consist of whole 32-bit words, which are what a checksum sums."""
    return align % 4 == 0
