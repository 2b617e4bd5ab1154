"""Which way a copy takes: by what was measured on this machine, else by what was measured on two H200.

A table says, for one pair of devices, how fast each way was for copies of some sizes. `kvmarket doctor --measure`
writes it, for every pair of GPUs, below ``$XDG_CACHE_HOME/kvmarket`` (or ``~/.cache/kvmarket``).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from kvmarket import counters

SPARING = 0.95  # a way that takes no SM is taken when it is at least this fast, as a share of the fastest


class Rate(msgspec.Struct, frozen=True):
    """What one way reached: bytes per second for copies of ``nbytes`` in all, in fragments of ``fragment`` bytes.

    One copy at a time, or, where it is ``busy``, behind another one: what a way does ahead of its first byte and behind
    its last one costs nothing then.
    """

    way: str
    nbytes: Annotated[int, msgspec.Meta(gt=0)]
    fragment: Annotated[int, msgspec.Meta(gt=0)]
    rate: float
    busy: bool = False


class Table(msgspec.Struct, frozen=True):
    """The rates of one pair of devices: ``reader`` copies from ``owner`` (UUIDs of GPUs)."""

    reader: str
    owner: str
    rates: tuple[Rate, ...]


_TWO_H200 = (  # over NVLink, in GB/s: single fetches, by call_p50 of bench/results/h200x2-transfer.json
    *(Rate("pull", n << 20, 65536, r * 1e9) for n, r in ((2, 37), (16, 177), (64, 259), (256, 333), (1024, 360))),
    *(Rate("copy", n << 20, 2 << 20, r * 1e9) for n, r in ((2, 40), (16, 130), (64, 252), (256, 336), (1024, 371))),
    *(Rate("staged", n << 20, 65536, r * 1e9) for n, r in ((16, 67), (64, 155), (256, 260), (1024, 319))),
    # two under way: the lower rate of that machine and of h200x2-slow-host-transfer.json, whose CPUs are half as fast
    *(Rate("pull", n << 20, 65536, r * 1e9, True) for n, r in ((16, 162), (64, 335), (256, 360), (1024, 370))),
    *(Rate("copy", n << 20, 2 << 20, r * 1e9, True) for n, r in ((16, 76), (64, 284), (256, 391), (1024, 396))),
    *(Rate("staged", n << 20, 65536, r * 1e9, True) for n, r in ((16, 31), (64, 76), (256, 201), (1024, 368))),
)


class Choice:
    """Chooses ways by a table."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._rates = tuple(rates)
        self._known = functools.lru_cache(maxsize=1024)(self._way)

    def way(self, nbytes: int, fragment: int, *, contiguous: bool, packed: bool, busy: bool = False) -> str:
        """The way for ``nbytes`` bytes in fragments of ``fragment`` bytes: "pull", "copy" or "staged".

        ``contiguous``: a slot is one range on both sides, so that it can be copied. ``packed``: the source is packed,
        so that it can be staged. ``busy``: another copy is under way. Costs less than 1 us where it was asked the same
        lately, else some 10.
        """
        return self._known(nbytes, fragment, contiguous, packed, busy)

    def _way(self, nbytes: int, fragment: int, contiguous: bool, packed: bool, busy: bool) -> str:
        ways = ["pull", *(["copy"] if contiguous else ["staged"] if packed else [])]
        rates = {way: self._rate(way, nbytes, fragment, busy) for way in ways}
        best = max(rates, key=lambda way: rates[way])
        if rates.get("copy", 0.0) >= SPARING * rates[best]:
            return "copy"
        return best

    def _rate(self, way: str, nbytes: int, fragment: int, busy: bool) -> float:
        """The rate of a way for so many bytes: between the two nearest sizes, of the nearest size of fragment.

        Less than the smallest size takes as long as that. A table without busy rates says single ones.
        """
        busy = busy and any(rate.busy for rate in self._rates)
        known = [rate for rate in self._rates if rate.way == way and rate.busy == busy]
        if not known:
            return 0.0
        nearest = min({rate.fragment for rate in known}, key=lambda size: abs(math.log2(size / fragment)))
        points = sorted((rate.nbytes, rate.rate) for rate in known if rate.fragment == nearest)
        above = next((i for i, (size, _) in enumerate(points) if size >= nbytes), None)
        if above is None:
            return points[-1][1]
        if above == 0:
            return points[0][1] * nbytes / points[0][0]
        (low, slow), (high, fast) = points[above - 1], points[above]
        share = math.log(nbytes / low) / math.log(high / low)
        return slow + share * (fast - slow)


class Forced(Choice):
    """One way whatever is asked: to measure it, and to test it. The copy must be one that it can take."""

    def __init__(self, way: str) -> None:
        super().__init__(())
        self._forced = way

    def way(self, nbytes: int, fragment: int, *, contiguous: bool, packed: bool, busy: bool = False) -> str:
        """That way."""
        return self._forced


BUILT_IN = Choice(_TWO_H200)


def folder() -> Path:
    """Where tables are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmarket"


def path_of(reader: str, owner: str) -> Path:
    """The file of one pair's table."""
    return folder() / f"ways-{reader}-{owner}.json"


def load(reader: str, owner: str) -> Choice:
    """The choice for one pair of devices: by its table where there is one (a broken one is counted), else built in."""
    try:
        table = msgspec.json.decode(path_of(reader, owner).read_bytes(), type=Table)
    except FileNotFoundError:
        return BUILT_IN
    except (OSError, RuntimeError, msgspec.DecodeError, UnicodeDecodeError) as error:  # RuntimeError: no home folder
        reason = f"the table of {reader} and {owner}: {error}; run kvmarket doctor --measure"
        counters.add("table_unreadable", reason=reason)
        return BUILT_IN
    return Choice(table.rates)


def save(table: Table) -> Path:
    """Keep a table for every market of this user; where."""
    path = path_of(table.reader, table.owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(table)))
    half.replace(path)  # nobody reads half a table
    return path
