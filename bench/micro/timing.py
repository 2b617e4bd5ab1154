"""Times copies: one at a time, or always two at a time. On a CPU a copy is done when its call returns."""

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
        """Set the mark: it is reached when everything launched so far is done."""
        self._moment = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Wait until the mark is reached."""
        if self._event is not None:
            self._event.synchronize()

    def done(self) -> bool:
        """Whether the mark is reached."""
        return self._event is None or self._event.query()

    def until(self, later: Mark) -> float:
        """Milliseconds from this mark to `later`; both must be reached."""
        if self._event is not None:
            return float(self._event.elapsed_time(later._event))
        return 1e3 * (later._moment - self._moment)


def handle() -> Mark:
    """A mark for everything launched so far; it has `done` and `wait`, as a fetch has."""
    mark = Mark()
    mark.record()
    return mark


def new_stream() -> torch.cuda.Stream | None:
    """A new CUDA stream; None on a CPU, with which ``torch.cuda.stream`` does nothing."""
    return torch.cuda.Stream() if GPUS else None


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which launches go to this device; it does nothing on a CPU."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def sustained(start: Callable[[], Any], count: int) -> list[float]:
    """Microseconds of each of `count` copies, with two in flight all the time."""
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
    """Microseconds of each of `count` copies, one at a time, from the call until the copy is done.

    With `spin`, on a GPU, `done()` is asked in a loop; else `wait()` is called. A loop takes the interpreter lock from
    other threads: use none where a thread launches the copy. On a CPU, where a thread may copy, none is used.
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
