"""Pools: arrays of slots with a generation each. Generations live in shared memory.

Staging pools allocate and evict slots.
"""

from __future__ import annotations

from kvmarket.pool.generations import GenerationReader, Generations
from kvmarket.pool.staging import StagingPool, StagingRing

__all__ = ["GenerationReader", "Generations", "StagingPool", "StagingRing"]
