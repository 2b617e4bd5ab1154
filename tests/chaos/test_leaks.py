"""What is counted as left behind, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.leaks import DRIVERS, Held, MiB, Samples, left_in_shm

NOBODY = 99_999_999  # no process has such a number
MAPS = """
import mmap, sys
print("ready", flush=True)
sys.stdin.readline()
file = open(sys.argv[1], "r+b")
memory = mmap.mmap(file.fileno(), 0)
memory[:] = bytes(len(memory))
print("mapped", flush=True)
sys.stdin.readline()
"""


def test_files_in_shared_memory_are_found_by_their_process_but_not_the_drivers():
    ours, drivers = Path(f"/dev/shm/kvmarket-test-{NOBODY}"), Path(f"{DRIVERS}0.{NOBODY}.1")
    others = Path(f"/dev/shm/kvmarket-test-{NOBODY}a")  # a part of a random name
    try:
        for path in (ours, drivers, others):
            path.touch()
        assert left_in_shm([NOBODY]) == [f"shared memory {ours.name} is left"]
        assert left_in_shm([NOBODY + 1]) == []
    finally:
        for path in (ours, drivers, others):
            path.unlink()


@pytest.mark.parametrize(("name", "counts"), [("kvmarket-test.", True), (Path(DRIVERS).name, False)])
def test_mapped_memory_counts_unless_it_is_the_drivers(name: str, counts: bool):
    path, size = Path(f"/dev/shm/{name}{NOBODY}"), 8 << 20
    path.touch()
    os.truncate(path, size)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", MAPS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            before = Held.by(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "mapped\n"
            held = Held.by(process.pid)
            process.communicate("\n")
    finally:
        path.unlink()
    assert held.shared - before.shared == (size if counts else 0)
    assert (held.mappings > before.mappings) == counts


def test_what_grows_is_told_with_its_course():
    samples = Samples("engine0")
    for number in range(80):
        samples._held.append(Held(100 * MiB + number * MiB, 0, 30, 400, 1 if number < 40 else 4))
    (leak,) = samples.leaks()
    assert leak.startswith("engine0: private grew from ") and "threads" not in leak, "a connection has three threads"
    course = [int(each) for each in leak.partition("(")[2].rstrip(")").split(", ")]
    assert len(course) == 8 and course == sorted(course) and course[-1] > course[0] + 60 * MiB


@pytest.mark.parametrize("moment", [0, 25, 50, 70])
def test_what_is_loaded_once_is_no_leak(moment: int):
    samples = Samples("engine0")
    for number in range(80):
        samples._held.append(Held((100 + 40 * (number > moment)) * MiB + number * 10_000, 0, 30, 400, 4))
    assert samples.levels() is not None and samples.leaks() == []
