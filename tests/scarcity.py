"""Leaves this process without free file descriptors, as when it holds too many connections."""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def descriptors() -> int:
    """How many descriptors this process has open, without those of garbage."""
    return len(_open())


def _open() -> list[int]:
    """The open descriptors, once other threads have closed what belonged to engines that left before."""
    gc.collect()
    now, before, end = _listed(), [], time.monotonic() + 2
    while now != before and time.monotonic() < end:
        time.sleep(0.05)
        now, before = _listed(), now
    return now


def _listed() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())


@contextmanager
def no_descriptors(left: int = 0) -> Iterator[None]:
    """A context in which this process can open only `left` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(_open())
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, highest + 32), hard))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for _ in range(left):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
