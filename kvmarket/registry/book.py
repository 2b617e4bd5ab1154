"""The book of a market: which engines are members, which pools they have, and the space of offers that each shares.

Pure data: no sockets, no files, no processes. The service drives it.
"""

from __future__ import annotations

import msgspec

from kvmarket.errors import LayoutError, MessageError, NotJoinedError, RefusedError
from kvmarket.registry.messages import Join, MemberStatus, News
from kvmarket.registry.news import put_in
from kvmarket.registry.space import Space


class Member(msgspec.Struct, frozen=True):
    """An engine that joined, and the space that it shares with the others of its fingerprint."""

    join: Join
    space: Space


class Book:
    """Members and offers. Every method either does all it says or raises and does nothing."""

    def __init__(self) -> None:
        """An empty book."""
        self.members: dict[str, Member] = {}
        self._spaces: dict[str, Space] = {}
        self._owners: dict[str, str] = {}  # pool -> member

    @property
    def blocks(self) -> int:
        """How many blocks are on offer, over all spaces and tenants."""
        return sum(space.blocks for space in self._spaces.values())

    def join(self, name: str, join: Join) -> None:
        """Add member `name`.

        Raises RefusedError if a pool is known already, LayoutError if a member of the space has another geometry.
        """
        for record in join.pools:
            if record.pool in self._owners or sum(record.pool == other.pool for other in join.pools) > 1:
                raise RefusedError(f"pool {record.pool} has joined already; give every pool a new id")
        for member in self.members.values():
            other = member.join
            if other.space == join.space and (other.geometry, other.block_size) != (join.geometry, join.block_size):
                raise LayoutError(
                    f"an engine of this fingerprint (process {other.process.pid}) has blocks of {other.geometry}, "
                    f"this one of {join.geometry}; "
                    "put what differs into the fingerprint, or give the caches equal logical shapes"
                )
        space = self._spaces.setdefault(join.space, Space(join.block_size))
        self.members[name] = Member(join, space)
        for record in join.pools:
            space.add_pool(record)
            self._owners[record.pool] = name

    def former(self, join: Join) -> str | None:
        """The member that the same process joined as before with the same pools, because it had heard no answer."""
        names = {self._owners.get(record.pool, "") for record in join.pools} - {""}
        return next((name for name in names if self.members[name].join.process == join.process), None)

    def leave(self, name: str) -> Join | None:
        """Remove member `name` with all its offers; what it had joined with. Costs O(its slots)."""
        member = self.members.pop(name, None)
        if member is None:
            return None
        for record in member.join.pools:
            member.space.drop_pool(record.pool)
            del self._owners[record.pool]
        if not any(other.space is member.space for other in self.members.values()):
            del self._spaces[member.join.space]
        return member.join

    def hear(self, name: str, news: News) -> str:
        """Do what `name` says of one of its pools; the space that this changed.

        Raises NotJoinedError where `name` is no member, MessageError. Costs as what `Space` does for it.
        """
        if name not in self.members:
            raise NotJoinedError(f"news of pool {news.pool} by somebody who has not joined; join (again)")
        if self._owners.get(news.pool) != name:
            raise MessageError(f"pool {news.pool} is not one of this engine")
        member = self.members[name]
        put_in(member.space, news)
        return member.join.space

    def status(self) -> tuple[MemberStatus, ...]:
        """One row per member."""
        rows = []
        for member in self.members.values():
            join, pools = member.join, member.space.pools
            offers = sum(len(pools[record.pool].standing()) for record in join.pools)
            rows.append(MemberStatus(join.process.pid, join.space, len(join.pools), offers))
        return tuple(rows)
