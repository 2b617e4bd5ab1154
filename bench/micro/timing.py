"""How a copy is timed: one at a time, or two under way all the time. On a CPU copies are done when they return."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

GPUS = torch.cuda.device_count()


class Mark:
    """A moment on the current stream of the GPU; on a CPU, the moment itself."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if GPUS else None
        self._moment = 0.0

    def record(self) -> None:
        """It is reached when all that was launched so far is done."""
        self._moment = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until it is reached."""
        if self._event is not None:
            self._event.synchronize()

    def done(self) -> bool:
        """Whether it is reached."""
        return self._event is None or self._event.query()

    def until(self, later: Mark) -> float:
        """Milliseconds from this mark to another one; both are reached."""
        if self._event is not None:
            return float(self._event.elapsed_time(later._event))
        return 1e3 * (later._moment - self._moment)


def handle() -> Mark:
    """What was launched so far, with the `done` and `wait` of a fetch."""
    mark = Mark()
    mark.record()
    return mark


def new_stream() -> torch.cuda.Stream | None:
    """For ``torch.cuda.stream``, which does nothing with None, the stream of a CPU."""
    return torch.cuda.Stream() if GPUS else None


def on(device: torch.device) -> AbstractContextManager[object]:
    """What is launched here goes to this device."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


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

    Whoever spins keeps the interpreter from a thread that launches. On a CPU that one copies, and nobody spins.
    """
    times = []
    for _ in range(count + 2):
        begin = time.perf_counter()
        copy = start()
        while spin and GPUS and not copy.done():
            pass
        copy.wait()
        times.append((time.perf_counter() - begin) * 1e6)
    return times[2:]
