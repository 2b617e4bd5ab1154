"""How a copy is timed: one at a time, or two under way all the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class Handle:
    """A copy by an event, with the `done` and `wait` of a fetch."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()
        self._event.record()

    def done(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()


def sustained(start: Callable[[], Any], count: int) -> list[float]:
    """Microseconds per copy, two under way all the time."""
    flying = [start(), start()]
    times, last = [], 0.0
    for _ in range(count + 2):
        flying.pop(0).wait()
        now = time.perf_counter()
        flying.append(start())
        times.append((now - last) * 1e6)
        last = now
    for each in flying:
        each.wait()
    return times[2:]


def single(start: Callable[[], Any], count: int, spin: bool = True) -> list[float]:
    """Microseconds from the call until `done()` is true, one at a time; until `wait()` returns unless `spin`.

    Whoever spins keeps the interpreter from a thread that launches.
    """
    times = []
    for _ in range(count + 2):
        begin = time.perf_counter()
        handle = start()
        while spin and not handle.done():
            pass
        handle.wait()
        times.append((time.perf_counter() - begin) * 1e6)
    return times[2:]
