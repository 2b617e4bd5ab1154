"""Leaves this process without free file descriptors, as when it holds too many connections."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def descriptors() -> int:
    """How many descriptors this process has open, without those of garbage."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextmanager
def no_descriptors(left: int = 0) -> Iterator[None]:
    """A context in which this process can open only `left` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
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
