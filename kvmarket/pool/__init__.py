"""Pools: arrays of slots with one generation per slot, in shared memory.

Also the staging pool, and a record of what fetches wrote into which slots.
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
