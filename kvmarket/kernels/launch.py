"""Which kernel copies: chosen by where the arrays are and which side is packed."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from kvmarket.kernels.reference import pull_reference
from kvmarket.kernels.slots import check_slots
from kvmarket.layout import SlotArray


def copy_blocks(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
) -> None:
    """Copy blocks ``source_slots[i]`` to slots ``destination_slots[i]``, between any two layouts of one geometry.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    On GPUs: launches on the current stream of the destination's device and returns at once; arrays and slots must live
    until the copy is done. ``programs`` bounds the programs that run at a time; the default suits a source on the same
    device for pack and scatter, and a peer for everything else. On CPUs: done on return (the torch reference, or the
    kernels where triton was imported with TRITON_INTERPRET=1). Raises LayoutError or SlotError before anything moves.
    """
    if destination.device.type == "cpu" and not _interpreted():
        check_slots(source, source_slots, destination, destination_slots)
        pull_reference(source, source_slots, destination, destination_slots)
    else:
        _kernel(source, destination)(source, source_slots, destination, destination_slots, programs=programs)


def prepare(source: SlotArray, destination: SlotArray) -> None:
    """Do ahead what the first copy between two arrays would do once: build the table, compile the kernel (a second)."""
    none = torch.empty(0, dtype=torch.int64, device=destination.device)
    copy_blocks(source, none, destination, none)


def _kernel(source: SlotArray, destination: SlotArray) -> Callable[..., None]:
    from kvmarket.kernels.pack import pack
    from kvmarket.kernels.pull import pull
    from kvmarket.kernels.scatter import scatter

    if source.layout.packed == destination.layout.packed:
        return pull
    return pack if destination.layout.packed else scatter


def _interpreted() -> bool:
    """Say whether the kernels run in Triton's interpreter; looks without importing triton when they cannot."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from kvmarket.kernels.tile import interpreted

    return interpreted()
