"""Memory and descriptors of processes, sampled while they run, and what they leave behind when they have ended."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pynvml

from kvmarket.cli.doctor.nvml import library
from kvmarket.registry.protocol.address import Address

MiB = 1 << 20
WHOLE_NUMBER = re.compile(r"(?<![0-9A-Za-z])\d+(?![0-9A-Za-z])")  # a random name in hexadecimal holds any digits
# For every process whose memory it opened, the CUDA driver keeps 80 KiB mapped within address space that it reserved.
# The rest of the reserved space after such a mapping is a mapping too. Neither counts.
DRIVERS, RESERVED = "/dev/shm/cuda.shm.", " ---p "


class Held(NamedTuple):
    """What one process holds at one moment."""

    private: int  # bytes that no other process shares
    shared: int  # bytes of shared memory that it has touched
    descriptors: int
    mappings: int
    threads: int

    @classmethod
    def by(cls, pid: int) -> Held | None:
        """What process `pid` holds; None if it has ended."""
        proc = Path("/proc") / str(pid)
        try:
            smaps = (proc / "smaps_rollup").read_text()
            status = (proc / "status").read_text()
            descriptors = sum(1 for _ in (proc / "fd").iterdir())
            maps = (proc / "maps").read_text(errors="replace").splitlines()
            drivers = _drivers_bytes(proc) if any(DRIVERS in line for line in maps) else 0
        except (FileNotFoundError, ProcessLookupError):
            return None
        if "VmRSS" not in status:  # a zombie
            return None
        private = _kib(smaps, "Private_Clean") + _kib(smaps, "Private_Dirty")
        mappings = sum(
            DRIVERS not in line and not (RESERVED in line and DRIVERS in before)
            for before, line in itertools.pairwise(["", *maps])
        )
        shared = _kib(status, "RssShmem") - drivers
        return cls(private, shared, descriptors, mappings, int(_field(status, "Threads")))


def _drivers_bytes(proc: Path) -> int:
    """Bytes of the driver's mappings that the process has touched."""
    parts = (proc / "smaps").read_text(errors="replace").split(DRIVERS)[1:]
    return sum(_kib(part, "Rss") for part in parts)


# How much the counts may vary: peers join and leave (a mapped one costs some ten descriptors), and an engine leaves the
# market for a moment (its connection has three threads). A leak per kill or fetch exceeds this.
SLACK = Held(8 * MiB, 8 * MiB, 32, 60, 3)
COURSE, GROWING = 8, 3  # parts of the time that are compared; a leak grows in at least so many of those after warm-up


class Samples:
    """What one process held over time."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._held: list[Held] = []

    def take(self, pid: int) -> None:
        """Add a sample."""
        held = Held.by(pid)
        if held is not None:
            self._held.append(held)

    def levels(self) -> tuple[Held, Held] | None:
        """Medians after warm-up (of the second quarter) and at the end (of the last one); None if samples are few."""
        quarter = len(self._held) // 4
        if quarter < 4:
            return None
        early, late = self._held[quarter : 2 * quarter], self._held[-quarter:]
        return tuple(Held(*(int(median(column)) for column in zip(*part, strict=True))) for part in (early, late))

    def leaks(self) -> list[str]:
        """Descriptions of what grew by more than the slack in several parts of the time, with the medians of all parts.

        One step up is no leak: the CUDA driver takes 36 MiB when a process first runs some kernel, whenever that is.
        """
        levels = self.levels()
        if levels is None:
            return []
        found = []
        for name, early, late, slack in zip(Held._fields, *levels, SLACK, strict=True):
            course = self._course(name)
            steps = [after - before for before, after in itertools.pairwise(course[COURSE // 4 - 1 :])]
            if late - early > slack and sum(step > slack // COURSE for step in steps) >= GROWING:
                found.append(f"{self.who}: {name} grew from {early} to {late} ({', '.join(map(str, course))})")
        return found

    def _course(self, name: str) -> list[int]:
        values = [getattr(held, name) for held in self._held]
        bounds = [len(values) * part // COURSE for part in range(COURSE + 1)]
        return [int(median(values[start:end])) for start, end in itertools.pairwise(bounds)]


def left_by_market(address: Address) -> list[str]:
    """Files and processes that a market has left after its last engine has ended."""
    files = [path for path in address.socket.parent.iterdir() if path.name.startswith(address.socket.name)]
    found = [f"file {path.name} is left" for path in files if path != address.log]
    for proc in Path("/proc").iterdir():
        try:
            command = (proc / "cmdline").read_bytes() if proc.name.isdigit() else b""
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"kvmarket.registry.service.daemon\0" + os.fsencode(address.socket) in command:
            found.append(f"process {proc.name} of the service is left")
    return found


def left_in_shm(pids: Iterable[int]) -> list[str]:
    """Files in /dev/shm that name one of these processes."""
    known = set(pids)
    return [
        f"shared memory {path.name} is left"
        for path in Path("/dev/shm").iterdir()
        if not str(path).startswith(DRIVERS) and known & {int(number) for number in WHOLE_NUMBER.findall(path.name)}
    ]


def gpu_memory() -> int:
    """Bytes in use on the first GPU that CUDA sees, over all processes."""
    first = (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").split(",")[0]
    with library():
        if first.isdigit():
            gpu = pynvml.nvmlDeviceGetHandleByIndex(int(first))
        else:
            gpu = pynvml.nvmlDeviceGetHandleByUUID(first)
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)


def _field(text: str, name: str) -> str:
    return re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]


def _kib(text: str, name: str) -> int:
    return 1024 * int(_field(text, name))
