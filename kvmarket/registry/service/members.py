"""The members of a market: the engines that joined, their pools, and the space in which each shares its offers.

Pure data: no sockets, no files, no processes. `Exchange` calls it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

import msgspec

from kvmarket.errors import LayoutError, MessageError, RefusedError
from kvmarket.registry.protocol.messages import (
    MAX_POOLS,
    Change,
    Join,
    News,
    PoolGone,
    PoolJoined,
    PoolRecord,
    PoolTold,
    Retire,
    Snapshot,
    SnapshotEnd,
)
from kvmarket.registry.protocol.status import (
    MemberStatus,
    OtherSpace,
    OtherSpaces,
    Report,
    SpaceDescribed,
    SpaceMembers,
    Spaces,
    SpaceStatus,
)
from kvmarket.registry.space.news import put_in
from kvmarket.registry.space.space import Space

RETIRED_SLOTS = 1 << 14  # in one message
MOST_DESCRIBED = 64  # spaces in one status
MOST_NAMED, MOST_EXPLAINED = 32, 4  # other spaces in one answer, and those of them with facts


class Member(msgspec.Struct, frozen=True):
    """An engine that joined, and the space that it shares with engines it can exchange blocks with."""

    join: Join
    space: Space

    @property
    def pools(self) -> tuple[str, ...]:
        """The ids of its pools."""
        return tuple(record.pool for record in self.join.pools)


class Members:
    """Members and offers. A method that raises has changed nothing, except `hear`, which applies news step by step."""

    def __init__(self) -> None:
        """Start without members."""
        self.by_name: dict[str, Member] = {}
        self.spaces: dict[str, Space] = {}
        self._joined: dict[str, dict[str, Join]] = {}  # space -> member -> its Join, in order of joining
        self._left: list[Space] = []  # spaces without members, whose memory is not yet freed
        self._owners: dict[str, str] = {}  # pool -> member
        self._reports: dict[str, Report] = {}  # member -> its last report

    @property
    def blocks(self) -> int:
        """Number of offered blocks, over all spaces and tenants."""
        return sum(space.blocks for space in self.spaces.values())

    def join(self, name: str, join: Join) -> None:
        """Add member `name`.

        Raises RefusedError if a pool is known already, LayoutError if a member of the space has another geometry.
        """
        for record in join.pools:
            if record.pool in self._owners or sum(record.pool == other.pool for other in join.pools) > 1:
                raise RefusedError(f"pool {record.pool} has joined already; give every pool a new id")
        other = next(iter(self._joined.get(join.space, {}).values()), join)
        if (other.geometry, other.block_size) != (join.geometry, join.block_size):
            raise LayoutError(
                f"an engine of this fingerprint (process {other.process.pid}) has blocks of {other.geometry}, "
                f"this one of {join.geometry}; "
                "put what differs into the fingerprint, or give the caches equal logical shapes"
            )
        space = self.spaces.setdefault(join.space, Space(join.block_size))
        self.by_name[name] = Member(join, space)
        self._joined.setdefault(join.space, {})[name] = join
        for record in join.pools:
            space.add_pool(record)
            self._owners[record.pool] = name

    def owner(self, pool: str) -> str | None:
        """The member that owns `pool`; None for an unknown pool."""
        return self._owners.get(pool)

    def former(self, join: Join) -> str | None:
        """The member as which the same process joined before with one of these pools; None if there is none.

        A process joins twice if it got no answer the first time.
        """
        names = {self._owners.get(record.pool, "") for record in join.pools} - {""}
        return next((name for name in names if self.by_name[name].join.process == join.process), None)

    def leave(self, name: str) -> Join | None:
        """Remove member `name` with all its offers; return its Join, or None. Costs a few us a pool, and `collect`."""
        member = self.by_name.pop(name, None)
        if member is None:
            return None
        self._reports.pop(name, None)
        for pool in member.pools:
            member.space.drop_pool(pool)
            del self._owners[pool]
        others = self._joined[member.join.space]
        del others[name]
        if not others:
            del self._joined[member.join.space]
            self._left.append(self.spaces.pop(member.join.space))
        return member.join

    def collect(self, seconds: float) -> bool:
        """Free memory of ended offers, for up to `seconds`; return whether there is more to free."""
        end = time.monotonic() + seconds
        for space in (*self.spaces.values(), *self._left):
            while space.collecting and time.monotonic() < end:
                space.collect()
        self._left = [space for space in self._left if space.collecting]
        return bool(self._left) or any(space.collecting for space in self.spaces.values())

    def begin(self, name: str) -> None:
        """Note that member `name` begins a snapshot of its offers."""
        member = self.by_name[name]
        for pool in member.pools:
            member.space.pools[pool].begin()

    def telling(self, name: str) -> bool:
        """Whether a snapshot of member `name` is under way."""
        member = self.by_name[name]
        return any(member.space.pools[pool].telling for pool in member.pools)

    def hear(self, name: str, news: News) -> Iterator[Change]:
        """Apply `news` of member `name` about its pools; yield the changes that the others of its space must receive.

        Raises MessageError; earlier steps of the same news then stay applied. Costs what `Space` needs for them.
        """
        member = self.by_name[name]
        match news:
            case SnapshotEnd():
                self._check(name, news.told)
                for pool in news.told:
                    yield from self._told(member.space, pool)
                for pool in frozenset(member.pools) - frozenset(news.told):
                    yield from self._drop(name, pool)
            case PoolJoined():
                yield from self._add(name, news.record)
            case PoolGone():
                self._check(name, (news.pool,))
                yield from self._drop(name, news.pool)
            case Snapshot():
                self._check(name, news.pools)
                fresh = sum(put_in(member.space, news))
                if fresh or not all(member.space.pools[pool].told for pool in news.pools):
                    yield news
            case _:
                self._check(name, (news.pool,))
                for _ in put_in(member.space, news):
                    pass
                yield news

    def status(self) -> tuple[MemberStatus, ...]:
        """One row per member."""
        rows = []
        for name, member in self.by_name.items():
            join, report = member.join, self._reports.get(name)
            offers = sum(len(member.space.pools[pool].standing()) for pool in member.pools)
            counted = report.counters if report else {}
            place = join.process.pid, join.space, len(member.pools), offers
            rows.append(MemberStatus(*place, join.label, counted, _lends(join)))
        return tuple(rows)

    def all_spaces(self) -> Spaces:
        """The spaces, with the numbers of their engines and lenders."""
        lenders = {name: sum(map(_lends, joined.values())) for name, joined in self._joined.items()}
        return Spaces(tuple(SpaceMembers(name, len(self._joined[name]) - n, n) for name, n in lenders.items()))

    def described(self, space: str) -> SpaceDescribed:
        """What a lender must know to join `space`."""
        if space not in self._joined:
            return SpaceDescribed()
        join = _first(self._joined[space])
        return SpaceDescribed(join.block_size, join.geometry, join.facts, join.label, join.pools[0].description)

    def told_spaces(self, facts: bool) -> tuple[SpaceStatus, ...]:
        """One row per space; with `facts`, the first `MOST_DESCRIBED` rows hold facts, which bounds the answer."""
        return tuple(
            SpaceStatus(name, _first(joined).facts if facts and number < MOST_DESCRIBED else ())
            for number, (name, joined) in enumerate(self._joined.items())
        )

    def other_spaces(self, space: str) -> OtherSpaces:
        """Of the other spaces at most `MOST_NAMED`, those of the same model first; the facts of the first of them.

        Costs up to some ms, however many engines there are.
        """
        model = _first(self._joined[space]).label.model if space in self._joined else ""
        others = [_first(joined) for name, joined in islice(self._joined.items(), MOST_DESCRIBED) if name != space]
        others.sort(key=lambda join: join.label.model != model)
        told = tuple(
            OtherSpace(join.space, join.process.pid, join.label, join.facts if number < MOST_EXPLAINED else ())
            for number, join in enumerate(others[:MOST_NAMED])
        )
        return OtherSpaces(told, len(self._joined) - (space in self._joined))

    def report(self, name: str, report: Report) -> None:
        """Keep `report` as the last report of member `name`."""
        self._reports[name] = report

    def _add(self, name: str, record: PoolRecord) -> Iterator[Change]:
        """Add a pool to a member that has joined, unless it is known; yield the changes for the others.

        Raises MessageError if it is another member's, of a process that did not join, or one too many.
        """
        member, owner = self.by_name[name], self._owners.get(record.pool, name)
        if record.pool in member.pools:
            return
        known = {member.join.process, *(process for pool in member.join.pools for process in pool.processes)}
        if owner != name or not known.issuperset(record.processes) or len(member.pools) >= MAX_POOLS:
            raise MessageError(f"pool {record.pool} is another's, of a process that did not join, or one too many")
        self._replace(name, (*member.join.pools, record))
        self._owners[record.pool] = name
        member.space.add_pool(record).told = True  # nothing of it was offered before
        yield PoolJoined(record)

    def _drop(self, name: str, pool: str) -> Iterator[Change]:
        """Drop a pool of a member with its offers; yield the change for the others."""
        member = self.by_name[name]
        self._replace(name, tuple(record for record in member.join.pools if record.pool != pool))
        del self._owners[pool]
        member.space.drop_pool(pool)
        yield PoolGone(pool)

    def _replace(self, name: str, pools: tuple[PoolRecord, ...]) -> None:
        """Replace the pools of a member."""
        member = self.by_name[name]
        join = msgspec.structs.replace(member.join, pools=pools)
        self.by_name[name] = Member(join, member.space)
        self._joined[join.space][name] = join

    def _told(self, space: Space, name: str) -> Iterator[Change]:
        """End the snapshot of a pool: drop the offers that it did not hold; yield the changes for the others."""
        pool = space.pools[name]
        first = not pool.told
        gone = pool.unseen()
        space.retire(name, gone)
        for start in range(0, len(gone), RETIRED_SLOTS):
            yield Retire(name, gone[start : start + RETIRED_SLOTS].tobytes())
        if first:
            yield PoolTold(name)

    def _check(self, name: str, pools: tuple[str, ...]) -> None:
        """Raise MessageError unless the pools are all of this member."""
        for pool in pools:
            if self._owners.get(pool) != name:
                raise MessageError(f"pool {pool} is not one of this engine")


def _lends(join: Join) -> bool:
    """Whether a member is a lender."""
    return any(record.lent for record in join.pools)


def _first(joined: Mapping[str, Join]) -> Join:
    """What the first member of a space joined with."""
    return next(iter(joined.values()))
