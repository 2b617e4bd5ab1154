"""Choose the way of a copy by the rates measured on this machine, or by the rates built into the ways.

`Ways.job` in way.py asks it for each copy, if there are several ways.

A table holds the measured rates of one pair of devices: how fast each way was for copies of some sizes. `kvmarket
doctor --measure` writes one for every pair of GPUs to ``$XDG_CACHE_HOME/kvmarket`` (or ``~/.cache/kvmarket``).
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

SPARING = 0.95  # a way that takes no SM is chosen if its rate is at least this share of the fastest rate


class Rate(msgspec.Struct, frozen=True):
    """The rate of one way, in bytes per second, for copies of ``nbytes`` bytes in fragments of ``fragment`` bytes.

    ``busy``: measured while another copy was under way, which hides the time before the copy's first byte and after its
    last. Else measured for one copy at a time.
    """

    way: str
    nbytes: Annotated[int, msgspec.Meta(gt=0)]
    fragment: Annotated[int, msgspec.Meta(gt=0)]
    rate: float
    busy: bool = False


class Table(msgspec.Struct, frozen=True):
    """The measured rates of one pair of devices: ``reader`` copies from ``owner`` (UUIDs of GPUs)."""

    reader: str
    owner: str
    rates: tuple[Rate, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """What the choice knows of a way: its name in tables, and ``sparing``: it takes no SM. Hashed by identity."""

    name: str
    sparing: bool = False


class Case(NamedTuple):
    """Layouts with which a way is measured: ``page`` is the bytes of a page of one layer.

    ``packed_source``, ``packed_own``: whether the source and our own slots are packed.
    """

    way: str
    page: int
    packed_source: bool
    packed_own: bool


class Choice:
    """Chooses ways by a list of rates."""

    def __init__(self, rates: Iterable[Rate]) -> None:
        self._rates = tuple(rates)
        self._known = functools.lru_cache(maxsize=1024)(self._way)

    def way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], *, busy: bool = False) -> str:
        """Return the name of one of the ways ``able`` for a copy of ``nbytes`` in fragments of ``fragment`` bytes.

        ``able`` must not be empty. Returns the fastest way, or a way that takes no SM and is nearly as fast (SPARING);
        of equally fast ways the first. ``busy``: another copy is under way. Costs less than 1 us for arguments seen
        before (1024 are remembered), else about 10 us.
        """
        return self._known(nbytes, fragment, able, busy)

    def _way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], busy: bool) -> str:
        rates = {way: self._rate(way.name, nbytes, fragment, busy) for way in able}
        best = max(rates.values())
        sparing = [way for way in able if way.sparing and rates[way] >= SPARING * best]
        return max(sparing or able, key=lambda way: rates[way]).name

    def _rate(self, way: str, nbytes: int, fragment: int, busy: bool) -> float:
        """The rate of a way for ``nbytes``, interpolated between the two nearest sizes; 0 for a way without rates.

        Uses the rates of the nearest fragment size. A copy below the smallest size is taken to last as long as that
        size. Without any busy rates the single ones are used.
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
    """Always chooses one given way, for measurements and tests. That way must be able to take the copy."""

    def __init__(self, way: str) -> None:
        super().__init__(())
        self._forced = way

    def way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], *, busy: bool = False) -> str:
        """Return the given way."""
        return self._forced


def folder() -> Path:
    """The folder of this user's tables."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmarket"


def path_of(reader: str, owner: str) -> Path:
    """The file of the table of one pair of GPUs, given by their UUIDs."""
    return folder() / f"ways-{reader}-{owner}.json"


def load(reader: str, owner: str, built_in: Choice) -> Choice:
    """The choice for one pair of devices: by its table, or `built_in` without one. An unreadable table is counted."""
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
    """Write a table, for every later market of this user; return its path. Raises OSError."""
    path = path_of(table.reader, table.owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(msgspec.json.format(msgspec.json.encode(table)))
    half.replace(path)  # atomic, so that no process reads half a table
    return path
