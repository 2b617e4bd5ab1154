"""Pools: arrays of slots with a generation each. Generations live in shared memory.

Staging pools allocate and evict slots.
"""

from __future__ import annotations

from kvmarket.pool.generations import GenerationReader, Generations
from kvmarket.pool.slots import Slots, UInt64s, as_slots
from kvmarket.pool.staging import StagingPool, StagingRing

__all__ = [
    "GenerationReader",
    "Generations",
    "Slots",
    "StagingPool",
    "StagingRing",
    "UInt64s",
    "as_slots",
]
