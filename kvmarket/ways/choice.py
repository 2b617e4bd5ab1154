"""Which way a copy takes: by what was measured on this machine, else by the rates that are built into the ways.

A table says, for one pair of devices, how fast each way was for copies of some sizes. `kvmarket doctor --measure`
writes it, for every pair of GPUs, below ``$XDG_CACHE_HOME/kvmarket`` (or ``~/.cache/kvmarket``).
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way as the choice sees it: the name that tables know it by, and whether it takes no SM. Hashed by identity."""

    name: str
    sparing: bool = False


class Case(NamedTuple):
    """A way, with layouts that it is for: pages of so many bytes per layer, or packed (None) slots for such pages."""

    way: str
    page: int
    packed_source: bool
    packed_own: bool


class Choice:
    """Chooses ways by a table."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._rates = tuple(rates)
        self._known = functools.lru_cache(maxsize=1024)(self._way)

    def way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], *, busy: bool = False) -> str:
        """Return the name of the way, of those that are ``able``, for ``nbytes`` in fragments of ``fragment`` bytes.

        ``able`` has at least one. The fastest wins, or one that takes no SM and is nearly as fast; of two that are
        equally fast, the earlier. ``busy``: another copy is under way. Costs less than 1 us where it was asked the same
        lately, else some 10.
        """
        return self._known(nbytes, fragment, able, busy)

    def _way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], busy: bool) -> str:
        rates = {way: self._rate(way.name, nbytes, fragment, busy) for way in able}
        best = max(rates.values())
        sparing = [way for way in able if way.sparing and rates[way] >= SPARING * best]
        return max(sparing or able, key=lambda way: rates[way]).name

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

    def way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], *, busy: bool = False) -> str:
        """That way."""
        return self._forced


def folder() -> Path:
    """Where tables are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmarket"


def path_of(reader: str, owner: str) -> Path:
    """The file of one pair's table."""
    return folder() / f"ways-{reader}-{owner}.json"


def load(reader: str, owner: str, built_in: Choice) -> Choice:
    """The choice for one pair of devices: by its table, or `built_in` where there is none; a broken one is counted."""
    try:
        table = msgspec.json.decode(path_of(reader, owner).read_bytes(), type=Table)
    except FileNotFoundError:
        return built_in
    except (OSError, RuntimeError, msgspec.DecodeError, UnicodeDecodeError) as error:  # RuntimeError: no home folder
        reason = f"the table of {reader} and {owner}: {error}; run kvmarket doctor --measure"
        counters.add("table_unreadable", reason=reason)
        return built_in
    return Choice(table.rates)


def save(table: Table) -> Path:
    """Keep a table for every market of this user; where."""
    path = path_of(table.reader, table.owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(table)))
    half.replace(path)  # nobody reads half a table
    return path
