"""The interface of movers: a mover is given `Copy`s and returns a `Started`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvmarket.errors import KVMarketError
from kvmarket.layout.paged import SlotArray
from kvmarket.pool import Slots

Int64s: TypeAlias = npt.NDArray[np.int64]
# The exceptions of a launch or a copy: out of memory, an error of the driver, of the compiler or of its cache.
FAILURES = (RuntimeError, MemoryError, OSError, ValueError, TypeError, KVMarketError)


class Copy(NamedTuple):
    """A copy of blocks ``source_slots[i]`` of ``source`` to our own slots ``slots[i]``.

    ``summed``: the checksums of the blocks are wanted.
    """

    source: SlotArray
    source_slots: Slots
    slots: Slots
    summed: bool


class Started(NamedTuple):
    """Copies under way. It keeps alive the memory that they read and write: drop it only when they are done.

    ``query`` says whether they are done, without waiting; any thread may call it. ``finish`` waits, and returns for
    each copy its sums (see kernels/checksum.py), (blocks,) int64, or None. It raises RuntimeError when a copy failed:
    then no block is valid. Call ``finish`` once.
    """

    query: Callable[[], bool]
    finish: Callable[[], Sequence[Int64s | None]]
    keep: object


class Mover(Protocol):
    """Moves blocks into one engine's slots."""

    def start(self, copies: Sequence[Copy]) -> Started:
        """Start copies that run after the work on the current stream; returns at once. Raises RuntimeError."""

    def prepare(self, source: SlotArray, owner: str) -> object:
        """Build tables and compile kernels for copies from ``source``, so that the first copy need not.

        ``owner``: the UUID of the GPU that holds ``source``. May take seconds. Raises RuntimeError.
        """

    def describe(self) -> str:
        """The ways that copies may take and the most SMs they use, as a text for an operator."""

    def close(self) -> None:
        """Wait for the copies under way; start none afterwards."""
