"""Engines with one fault each: they show that the harness notices it."""

from __future__ import annotations

import os
import time

import numpy as np

from tests.chaos.engine import Engine
from tests.chaos.owner import Life
from tests.model_engine import BLOCK


class OverwritesWithoutRetiring(Engine):
    """Writes to slots that are offered."""

    def overwrite(self) -> None:
        slots = self._resting(24)
        self._write(slots, self._anything(len(slots)))
        self.holds_block[slots] = -1


class PublishesWrongBytes(Engine):
    """Publishes blocks under the tokens of other blocks."""

    def overwrite(self) -> None:
        slots = self._resting(6)
        self._compute(slots, self._anything(len(slots)))
        self.market.publish(self.world.prompts[0][: len(slots) * BLOCK], slots.tolist())
        self.holds_block[slots] = -1


class WritesBeforeItRetires(Engine):
    """Writes first and retires later, so that a fast reader takes wrong bytes."""

    def _compute(self, slots: np.ndarray, ids: np.ndarray) -> None:
        self._write(slots, ids)
        time.sleep(0.02)
        self.market.retire(slots.tolist())


class Hangs(Engine):
    """Hangs after 200 steps."""

    def step(self) -> None:
        if self.tally["steps"] == 200:
            time.sleep(1e6)
        super().step()


class Raises(Engine):
    """Raises an exception after 200 steps."""

    def step(self) -> None:
        assert self.tally["steps"] < 200, "an injected fault"
        super().step()


class Leaks(Engine):
    """Leaks a hundred descriptors a second, at any speed of its steps."""

    def __init__(self, life: Life) -> None:
        super().__init__(life)
        self.leaked, self.since = 0, time.monotonic()

    def step(self) -> None:
        while self.leaked < 100 * (time.monotonic() - self.since):
            os.dup(0)
            self.leaked += 1
        super().step()


FAULTS = {
    kind.__name__: kind
    for kind in (OverwritesWithoutRetiring, PublishesWrongBytes, WritesBeforeItRetires, Hangs, Raises, Leaks)
}


def engine_of(life: Life) -> Engine:
    """Make the engine with these settings, with the fault that they name, if any."""
    return FAULTS[life.fault](life) if life.fault else Engine(life)
