"""Loads under way, as the scheduler side knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmarket.pool import Slots, UInt64s
from vllm_hook.tracks import Track


@dataclass(slots=True)
class Flight:
    """A load under way: its destinations, their generations, and those destinations that a rank could not fill."""

    track: Track
    first: int
    slots: Slots
    generations: UInt64s
    bad: set[int] = field(default_factory=set)

    def good(self) -> int:
        """How many leading blocks every rank has, once it has landed."""
        if not self.bad:
            return len(self.slots)
        return next((i for i, slot in enumerate(self.slots.tolist()) if slot in self.bad), len(self.slots))
