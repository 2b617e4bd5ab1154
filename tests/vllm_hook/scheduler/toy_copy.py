"""A load's copy in the toy vLLM: it takes some polls, and may deliver only a part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.vllm_hook.scheduler.fakes import prefix

LOST = 0.2  # chance that a load delivers only a part


class Copy:
    """A copy in flight: it ends after some calls of `done`, or at `wait`."""

    def __init__(self, toy: Any, first: int, slots: Sequence[int]) -> None:
        self.begun, self.seconds = time.perf_counter(), 0.0
        self._toy, self._first, self._slots = toy, first, slots
        self._looks = toy.chance.choice((0, 0, 1, 2, 3, 6))
        self._good: int | None = None
        toy.holds.update(dict.fromkeys(slots))

    def done(self) -> bool:
        self._looks -= 1
        return self._looks < 0 and self.wait() >= 0

    def wait(self) -> int:
        if self._good is None:
            count, chance, self.seconds = len(self._slots), self._toy.chance, 0.001
            self._good = chance.randrange(count) if chance.random() < LOST else count
            for block, slot in enumerate(self._slots[: self._good], self._first + 1):
                self._toy.holds[slot] = prefix(block)
        return self._good
