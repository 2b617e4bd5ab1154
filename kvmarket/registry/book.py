"""The book of a market.

Which engines are members, which pools they have, and every offer, in one trie per space and tenant.

Pure data: no sockets, no files, no processes. The service drives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import msgspec
import numpy as np

from kvmarket.errors import LayoutError, MessageError, RefusedError
from kvmarket.registry.messages import Join, Match, MemberStatus, OfferBlocks, PoolRecord, Run, joined
from kvmarket.registry.tokens import Int32s
from kvmarket.registry.trie import PrefixTrie

_SLOT_BITS = 40  # an offer in a trie is pool number << 40 | slot, below 2**63


class Standing(msgspec.Struct):
    """The offer that stands for a slot: where it is and what it is worth."""

    trie: PrefixTrie
    epoch: int
    generation: int
    checksum: bytes = b""


class Pool(msgspec.Struct):
    """A pool of a member, with the offers that stand for its slots."""

    number: int
    record: PoolRecord
    member: str
    standing: dict[int, Standing]


class Member(msgspec.Struct):
    """An engine that joined."""

    join: Join
    pools: dict[str, Pool]


class Book:
    """Members, pools and offers. Every method either does all it says or raises and does nothing."""

    def __init__(self) -> None:
        """An empty book."""
        self.members: dict[str, Member] = {}
        self._pools: dict[str, Pool] = {}
        self._by_number: dict[int, Pool] = {}
        self._tries: dict[tuple[str, str], PrefixTrie] = {}
        self._numbers = count(1)

    @property
    def blocks(self) -> int:
        """How many blocks are on offer, over all spaces and tenants."""
        return sum(len(trie) for trie in self._tries.values())

    def join(self, name: str, join: Join) -> None:
        """Add member `name`.

        Raises RefusedError if a pool is known already, LayoutError if a member of the space has another geometry.
        """
        for record in join.pools:
            if record.pool in self._pools:
                raise RefusedError(f"pool {record.pool} has joined already; give every pool a new id")
        for member in self.members.values():
            other = member.join
            if other.space == join.space and (other.geometry, other.block_size) != (join.geometry, join.block_size):
                raise LayoutError(
                    f"an engine of this fingerprint (process {other.process.pid}) has blocks of {other.geometry}, "
                    f"this one of {join.geometry}; "
                    "put what differs into the fingerprint, or give the caches equal logical shapes"
                )
        pools = {record.pool: Pool(next(self._numbers), record, name, {}) for record in join.pools}
        self.members[name] = Member(join, pools)
        self._pools.update(pools)
        self._by_number.update({pool.number: pool for pool in pools.values()})

    def former(self, join: Join) -> str | None:
        """The member that the same process joined as before with the same pools, because it had heard no answer."""
        pools = [self._pools.get(record.pool) for record in join.pools]
        names = {pool.member for pool in pools if pool is not None}
        return next((name for name in names if self.members[name].join.process == join.process), None)

    def leave(self, name: str) -> tuple[str, ...]:
        """Remove member `name` with all its offers; the ids of its pools. Costs O(its offers)."""
        member = self.members.pop(name, None)
        if member is None:
            return ()
        for pool in member.pools.values():
            self._take_down(pool, list(pool.standing))
            del self._pools[pool.record.pool], self._by_number[pool.number]
        return tuple(member.pools)

    def offer(self, name: str, offer: OfferBlocks) -> None:
        """Put up the offers of `offer`; an older offer of the same slot goes, a newer one stays. Raises MessageError.

        Costs one insertion of the prefix, O(its blocks).
        """
        pool = self._own_pool(name, offer.pool)
        member = self.members[name]
        tokens, size = _tokens(offer.tokens), member.join.block_size
        if len(offer.slots) != len(offer.generations) or (offer.first + len(offer.slots)) * size != len(tokens):
            raise MessageError("an offer whose tokens, slots and generations do not fit each other")
        if len(offer.checksums) not in (0, 8 * len(offer.slots)):
            raise MessageError("an offer whose checksums do not fit its slots")
        if len(set(offer.slots)) != len(offer.slots):
            raise MessageError("an offer that names a slot twice")
        value = [(offer.epoch, generation) for generation in offer.generations]
        standing = [pool.standing.get(slot) for slot in offer.slots]
        if any(old is not None and (old.epoch, old.generation) > new for old, new in zip(standing, value, strict=True)):
            raise MessageError("an offer older than the one that stands")
        self._take_down(pool, [slot for slot, old in zip(offer.slots, standing, strict=True) if old is not None])
        trie = self._tries.setdefault((member.join.space, offer.tenant), PrefixTrie(size))
        trie.insert(tokens, [pool.number << _SLOT_BITS | slot for slot in offer.slots], first=offer.first)
        for index, (slot, (epoch, generation)) in enumerate(zip(offer.slots, value, strict=True)):
            pool.standing[slot] = Standing(trie, epoch, generation, offer.checksums[8 * index : 8 * index + 8])

    def retire(self, name: str, pool_id: str, slots: Iterable[int] | None) -> None:
        """Take down the offers of `slots` of a pool of `name`, of all when None. Slots without one are passed over."""
        pool = self._own_pool(name, pool_id)
        wanted = pool.standing if slots is None else slots
        self._take_down(pool, [slot for slot in wanted if slot in pool.standing])

    def match(self, name: str, match: Match) -> tuple[tuple[Run, ...], tuple[PoolRecord, ...]]:
        """The longest offered prefix from block `first` on, as runs, with the records of pools not `known`.

        Raises MessageError.

        Where several pools offer a block, the one that gave the block before is preferred, then the newest offer.
        """
        if name not in self.members:
            raise MessageError("a match of somebody who has not joined")
        tokens = _tokens(match.tokens)
        space = self.members[name].join.space
        trie = self._tries.get((space, match.tenant))
        if trie is None:
            return (), ()
        unwanted = {self._pools[pool].number for pool in match.without if pool in self._pools}
        runs: list[tuple[Pool, int, list[int], list[Standing]]] = []
        number = -1
        for offers in trie.match_all(tokens)[match.first :]:
            fitting = [offer for offer in offers if offer >> _SLOT_BITS not in unwanted]
            if not fitting:
                break
            chosen = next((offer for offer in fitting if offer >> _SLOT_BITS == number), fitting[0])
            number, slot = chosen >> _SLOT_BITS, chosen & (1 << _SLOT_BITS) - 1
            pool = self._by_number[number]
            standing = pool.standing[slot]
            if not runs or runs[-1][0] is not pool or runs[-1][1] != standing.epoch:
                runs.append((pool, standing.epoch, [], []))
            runs[-1][2].append(slot)
            runs[-1][3].append(standing)
        records = {pool.record.pool: pool.record for pool, *_ in runs if pool.record.pool not in match.known}
        found = []
        for pool, epoch, slots, offered in runs:
            checksums = joined([offer.checksum for offer in offered])
            generations = tuple(offer.generation for offer in offered)
            found.append(Run(pool.record.pool, epoch, tuple(slots), generations, checksums))
        return tuple(found), tuple(records.values())

    def status(self) -> tuple[MemberStatus, ...]:
        """One row per member."""
        return tuple(
            MemberStatus(m.join.process.pid, m.join.space, len(m.pools), sum(len(p.standing) for p in m.pools.values()))
            for m in self.members.values()
        )

    def _own_pool(self, name: str, pool_id: str) -> Pool:
        pool = self._pools.get(pool_id)
        if pool is None or pool.member != name:
            raise MessageError(f"pool {pool_id} is not one of this engine")
        return pool

    def _take_down(self, pool: Pool, slots: list[int]) -> None:
        by_trie: dict[int, tuple[PrefixTrie, list[int]]] = {}
        for slot in slots:
            trie = pool.standing.pop(slot).trie
            by_trie.setdefault(id(trie), (trie, []))[1].append(pool.number << _SLOT_BITS | slot)
        for trie, offers in by_trie.values():
            trie.remove(offers)
            if not trie:
                self._tries = {key: kept for key, kept in self._tries.items() if kept is not trie}


def _tokens(data: bytes) -> Int32s:
    if len(data) % 4:
        raise MessageError(f"{len(data)} bytes of tokens are no whole number of 32-bit integers")
    return np.frombuffer(data, np.int32)
