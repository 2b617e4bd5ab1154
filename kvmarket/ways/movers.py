"""Which mover drives copies into the memory of a device."""

from __future__ import annotations

from collections.abc import Callable

from kvmarket.layout.paged import SlotArray
from kvmarket.ways.copying import Mover
from kvmarket.ways.cpu import CpuMover


def mover_of(own: SlotArray, programs: int | None) -> Mover:
    """What moves blocks into these slots; `programs` bounds the programs of a kernel that run at a time."""
    return MOVERS[own.device.type](own, programs)


def _gpu_mover(own: SlotArray, programs: int | None) -> Mover:
    from kvmarket.ways.gpu.mover import GpuMover  # needs Triton, which a machine without GPUs may lack

    return GpuMover(own, programs)


MOVERS: dict[str, Callable[[SlotArray, int | None], Mover]] = {  # by the type of device that a kind of memory maps on
    "cpu": lambda own, _programs: CpuMover(own),
    "cuda": _gpu_mover,
}
