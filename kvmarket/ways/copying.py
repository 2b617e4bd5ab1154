"""What a mover is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvmarket.errors import KVMarketError
from kvmarket.layout.paged import SlotArray
from kvmarket.pool import Slots

Int64s: TypeAlias = npt.NDArray[np.int64]
# What a launch or a copy may raise: no memory, a refusal of the driver, an error of the compiler or of its cache.
FAILURES = (RuntimeError, MemoryError, OSError, ValueError, TypeError, KVMarketError)


class Copy(NamedTuple):
    """Blocks ``source_slots[i]`` of ``source`` go to ``slots[i]`` of our own; summed if their checksums are wanted."""

    source: SlotArray
    source_slots: Slots
    slots: Slots
    summed: bool


class Started(NamedTuple):
    """Copies under way. It keeps alive what they read and write; let go of it only when they are done.

    ``query`` polls; any thread may. ``finish`` waits, and raises RuntimeError when a copy failed: then no block counts.
    It returns for each copy its sums (see kernels/checksum.py), (blocks,) int64, or None; call it once.
    """

    query: Callable[[], bool]
    finish: Callable[[], Sequence[Int64s | None]]
    keep: object


class Mover(Protocol):
    """Moves blocks into one engine's slots."""

    def start(self, copies: Sequence[Copy]) -> Started:
        """Start copies after what the current stream holds; returns at once."""

    def prepare(self, source: SlotArray, owner: str) -> object:
        """Do ahead what the first copy from ``source`` would do once; ``owner`` names the GPU that it lies on."""

    def describe(self) -> str:
        """The ways that copies may take, and at most how many SMs, in words for an operator."""

    def close(self) -> None:
        """Wait for the copies under way, then let go of everything."""
