"""Pools: arrays of slots with a generation each. Generations live in shared memory.

Staging pools allocate and evict slots.
"""

from __future__ import annotations

from kvmarket.pool.generations import GenerationReader, Generations, leading
from kvmarket.pool.slots import Flags, Slots, UInt64s, as_slots
from kvmarket.pool.staging import StagingPool, StagingRing

__all__ = [
    "Flags",
    "GenerationReader",
    "Generations",
    "Slots",
    "StagingPool",
    "StagingRing",
    "UInt64s",
    "as_slots",
    "leading",
]
