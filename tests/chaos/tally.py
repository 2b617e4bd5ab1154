"""Counts of what an engine has done, in a file that engine and driver map: a kill of the engine loses none."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

from kvmarket import counters

COUNTS = (
    "steps",
    "matches",
    "hits",
    "fetches",
    "asked",  # blocks that fetches asked for
    "verified",  # blocks that were valid, each byte of which was compared
    "wrong",  # blocks that were said to be valid and had a wrong byte
    "refused",  # publications of blocks in place that raised SlotError
    "publishes",
    "published",  # blocks
    "retires",
    "overwrites",
    "rejoins",
    "full",  # turns of a lender all of whose memory was lent
)
_STOP = len(COUNTS)
_WORDS = len(COUNTS) + 1


class Tally:
    """Counts of one incarnation of an engine. The engine writes them; the driver reads them and may ask it to stop."""

    def __init__(self, path: Path) -> None:
        """Map `path`; a missing file is made, with all counts zero."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, 8 * _WORDS)
        self._words = memoryview(mmap.mmap(fd, 8 * _WORDS)).cast("q")
        os.close(fd)

    def add(self, name: str, n: int = 1) -> None:
        """Add `n` to a count."""
        self._words[COUNTS.index(name)] += n

    def __getitem__(self, name: str) -> int:
        return self._words[COUNTS.index(name)]

    def counts(self) -> dict[str, int]:
        """All counts by name."""
        return dict(zip(COUNTS, self._words, strict=False))

    @property
    def stopping(self) -> bool:
        """Whether the driver wants the engine to leave."""
        return self._words[_STOP] != 0

    def stop(self) -> None:
        """Ask the engine to settle what is in flight, leave the market and exit."""
        self._words[_STOP] = 1


def write_counters(home: str, name: str) -> None:
    """Write the counters of kvmarket in this process into a file, of which the driver reads the newest whole one."""
    path = Path(home) / f"{name}.counters"
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(counters.snapshot()))
    fresh.replace(path)
