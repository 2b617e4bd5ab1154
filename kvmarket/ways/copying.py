"""What a mover is given, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from kvmarket.errors import KVMarketError
from kvmarket.layout import SlotArray
from kvmarket.pool import Slots

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

    ``query`` polls. ``finish`` waits, and raises RuntimeError when a copy failed: then no block counts. After it,
    ``sums`` has for each copy its sums (see kernels/checksum.py), (blocks,) int64 in host memory, or None.
    """

    query: Callable[[], bool]
    finish: Callable[[], object]
    sums: Sequence[torch.Tensor | None]
    keep: object


class Mover(Protocol):
    """Moves blocks into one engine's slots."""

    def start(self, copies: Sequence[Copy]) -> Started:
        """Start copies after what the current stream holds; returns at once."""

    def prepare(self, source: SlotArray, owner: str) -> None:
        """Do ahead what the first copy from ``source`` would do once; ``owner`` names the GPU that it lies on."""

    def close(self) -> None:
        """Wait for the copies under way, then let go of everything."""
