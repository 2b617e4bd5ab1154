"""A fake market that an engine can join only when the test allows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, FakePool, back
from vllm_hook.metadata import RankMemory, StepDone
from vllm_hook.scheduler.side import SchedulerSide

NEW = ((0, "new"),)


def times(name: str) -> int:
    return sum(n for key, n in counters.snapshot().items() if key.split("{")[0] == name)


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


class LateMarket:
    """A market that an engine can join when `closed` is empty; until then an attempt raises an exception from it."""

    def __init__(self, *closed: Exception) -> None:
        self.closed = list(closed)
        self.attempts = 0
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[tuple[Any, FakeControl]] = []
        self.heard: list[str] = []
        self.joined: list[FakeControl] = []
        self.pool = FakePool()
        self.side = SchedulerSide(BLOCK, 1)
        self.side.bind_pool(self.pool)

    def connect(self, ranks: Any) -> FakeControl:
        self.attempts += 1
        assert self.gate.wait(5)
        if self.closed:
            raise self.closed[min(self.attempts, len(self.closed)) - 1]
        self.made.append((ranks[0].weights, FakeControl()))
        return self.made[-1][1]

    def start(self) -> str:
        memory = {0: RankMemory(None, None)}
        return self.side.join(memory, self.connect, self.joined.append, self.heard.append)  # type: ignore[arg-type]

    def open(self) -> FakeControl:
        """Let the engine join; the scheduler side has not taken the control half yet."""
        self.closed.clear()
        until(lambda: self.joined)
        return self.joined[-1]

    def back(self, step: int, weights: Any = ()) -> None:
        output = back(step)
        output.kv_connector_worker_meta = StepDone(step, weights=weights)
        self.side.returned(output)
