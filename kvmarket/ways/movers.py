"""The mover of each type of device."""

from __future__ import annotations

from collections.abc import Callable

from kvmarket.layout.paged import SlotArray
from kvmarket.ways.copying import Mover
from kvmarket.ways.cpu import CpuMover


def mover_of(own: SlotArray, programs: int | None) -> Mover:
    """Make the mover that copies into the slots `own`; at most `programs` programs of a kernel run at a time."""
    return MOVERS[own.device.type](own, programs)


def _gpu_mover(own: SlotArray, programs: int | None) -> Mover:
    from kvmarket.ways.gpu.mover import GpuMover  # needs Triton, which a machine without GPUs may lack

    return GpuMover(own, programs)


MOVERS: dict[str, Callable[[SlotArray, int | None], Mover]] = {  # by type of device
    "cpu": lambda own, _programs: CpuMover(own),
    "cuda": _gpu_mover,
}
