"""What is counted as left behind, and what is not."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.chaos.leaks import DRIVERS, Held, left_in_shm


NOBODY = 99_999_999  # no process has such a number


def test_files_in_shared_memory_are_found_by_their_process_but_not_the_drivers():
    ours, drivers = Path(f"/dev/shm/kvmarket-test-{NOBODY}"), Path(f"{DRIVERS}0.{NOBODY}.1")
    try:
        ours.touch()
        drivers.touch()
        assert left_in_shm([NOBODY]) == [f"shared memory {ours.name} is left"]
        assert left_in_shm([NOBODY + 1]) == []
    finally:
        ours.unlink()
        drivers.unlink()


@pytest.mark.parametrize("name", ["kvmarket-test", Path(DRIVERS).name])
def test_mapped_memory_counts_unless_it_is_the_drivers(name: str):
    path, size = Path(f"/dev/shm/{name}.{os.getpid()}"), 8 << 20
    path.touch()
    os.truncate(path, size)
    before = Held.by(os.getpid())
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as memory:
            memory[:] = bytes(size)
            held = Held.by(os.getpid())
            theirs = size if name == "kvmarket-test" else 0
            assert held.shared - before.shared == theirs
            assert (held.mappings > before.mappings) == bool(theirs)
    finally:
        path.unlink()
