"""A space: all offers that one fingerprint's engines may exchange, in one trie per tenant. Pure data.

The service keeps one per fingerprint, every engine a replica of its own, and a ledger of what it offers itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import count
from typing import NamedTuple

import numpy as np

from kvmarket.errors import MessageError, MissingBlockError
from kvmarket.flags import Flags, leading
from kvmarket.registry.messages import Change, PoolJoined, PoolRecord, Promise
from kvmarket.registry.node import OFFERS_PER_BLOCK
from kvmarket.registry.offering import Offering, array_of
from kvmarket.registry.promises import Promises
from kvmarket.registry.standing import Pool, Run, distinct
from kvmarket.registry.tokens import Int32s, Int64s
from kvmarket.registry.tree import Place
from kvmarket.registry.trie import PrefixTrie

SLOT_BITS = 40  # an offer in a trie is pool number << 40 | slot, below 2**63
_SLOTS = np.uint64(1 << SLOT_BITS)
MAX_BLOCKS = 1 << 22  # in one tenant's trie; beyond it the block matched longest ago goes


class _Tenancy(NamedTuple):
    number: int
    tenant: str
    trie: PrefixTrie


class Space:
    """Pools and the offers of their slots. Every method either does all it says or raises and does nothing.

    Not thread-safe.
    """

    def __init__(self, block_size: int, max_blocks: int | None = MAX_BLOCKS) -> None:
        """An empty space of blocks of `block_size` tokens, at most `max_blocks` of one tenant (see PrefixTrie)."""
        self.block_size, self._max_blocks = block_size, max_blocks
        self.pools: dict[str, Pool] = {}
        self._by_number: dict[int, Pool] = {}
        self._tenants: dict[str, _Tenancy] = {}
        self._tenancies: dict[int, _Tenancy] = {}
        self._numbers = count(1)
        self.promises = Promises(block_size)

    @property
    def blocks(self) -> int:
        """How many blocks are on offer, over all tenants."""
        return sum(len(each.trie) for each in self._tenants.values())

    def add_pool(self, record: PoolRecord) -> None:
        """A pool whose slots may be offered; nothing happens where it is known. Costs nothing until they are."""
        if record.pool not in self.pools:
            pool = Pool(next(self._numbers), record)
            self.pools[record.pool] = self._by_number[pool.number] = pool

    def drop_pool(self, name: str) -> None:
        """Forget a pool and its offers; nothing happens where it is not known. Costs O(slots)."""
        pool = self.pools.get(name)
        if pool is not None:
            self._take_down(pool, pool.standing())
            self.promises.drop(name)
            del self.pools[name], self._by_number[pool.number]

    def offer(self, offering: Offering) -> None:
        """Put offers up; an older offer of the same slot goes. Raises MessageError.

        For a pool that is not known, slots that it does not have or that come twice, and offers older than what stands;
        MissingBlockError where the block that they go on from is not on offer. Costs one insertion of the prefix,
        O(its tokens) by memcmp, and O(the blocks offered).
        """
        pool = self._pool(offering.pool)
        slots, generations, epoch = offering.slots, offering.generations, offering.epoch
        old = pool.known(slots)
        if len(distinct(slots)) < len(slots):
            raise MessageError("an offer that names a slot twice")
        if len(old):
            epochs = pool.epochs[slots]
            newer = (epochs > epoch) | ((epochs == epoch) & (pool.generations[slots] > generations))
            if (newer & (pool.generations[slots] != 0)).any():
                raise MessageError("an offer older than the one that stands")
        place = self._before(pool, offering) if offering.after >= 0 else None
        if len(old):
            self._take_down(pool, old)
            place = None  # it may have moved
        tenancy = self._tenancy(offering.tenant)
        names, before = slots | (pool.number << SLOT_BITS), offering.after | (pool.number << SLOT_BITS)
        if offering.after < 0:
            tenancy.trie.insert(offering.tokens, names, first=offering.first)
        else:
            tenancy.trie.extend(before, offering.tokens, names, place)
        pool.note(slots, epoch, generations, offering.checksums, tenancy.number)

    def retire(self, name: str, slots: Int64s | None) -> Int64s:
        """Take down the offers of `slots`, of all when None; those that had one. Raises MessageError.

        For a pool that is not known or has no such slots. Costs the removal of those, and some us.
        """
        pool = self._pool(name)
        gone = pool.standing() if slots is None else distinct(pool.known(slots))
        self._take_down(pool, gone)
        if slots is None:
            self.promises.drop(name)
            pool.mixed = False
        return gone

    def promise(self, promise: Promise) -> None:
        """Note that somebody is computing a prefix.

        Raises MessageError for a pool that is not known, or tokens that are no whole number of integers.
        """
        self._pool(promise.pool)
        array_of(promise.tokens, np.dtype(np.int32))
        self.promises.add(promise)

    def match(self, tokens: Int32s, tenant: str, first: int, without: Collection[str]) -> list[Run]:
        """The longest offered prefix from block `first` on, as runs in block order.

        Offers of the pools `without` do not count. Where several pools offer a block, the one that gave the block
        before is preferred, then the newest offer. Costs one match of the trie and some 10 us a run.
        """
        tenancy = self._tenants.get(tenant)
        if tenancy is None:
            return []
        unwanted = {self.pools[pool].number for pool in without if pool in self.pools} if without else ()
        chosen: list[tuple[int, list[Int64s]]] = []  # the number of a pool, and slots of it
        number = 0
        for offers in tenancy.trie.match_arrays(tokens, first):
            while offers.shape[1]:
                single = len(offers) == 1  # mostly so
                there = (int(offers[0, 0]) >> SLOT_BITS,) if single else (offers[:, 0] >> SLOT_BITS).tolist()
                if number not in there:
                    number = next((n for n in there if n >= 0 and n not in unwanted), 0)
                    if not number:
                        return self._runs(chosen)
                    chosen.append((number, []))
                slots = (offers[0] if single else offers) ^ (number << SLOT_BITS)  # where the pool is another one, or
                held = slots.view(np.uint64) < _SLOTS  # there is no offer, upper bits are left
                if not single:
                    slots, held = slots[held.argmax(axis=0), np.arange(held.shape[1])], held.any(axis=0)
                blocks = leading(held)
                chosen[-1][1].append(slots[:blocks])
                if blocks == offers.shape[1]:
                    break
                offers = offers[:, blocks:]
        return self._runs(chosen)

    def before(self, offering: Offering) -> int:
        """A slot of the offering's pool that has the block before its first one on offer; -1 if none has."""
        tenancy = self._tenants.get(offering.tenant)
        if tenancy is None or not offering.first:
            return -1
        prefix = offering.tokens[: offering.first * self.block_size]
        number = self._pool(offering.pool).number
        for offers in tenancy.trie.match_arrays(prefix, offering.first - 1, holes=True):
            mine = offers[:, 0][offers[:, 0] >> SLOT_BITS == number]
            return int(mine[0]) & ((1 << SLOT_BITS) - 1) if len(mine) else -1
        return -1

    def holds(self, offering: Offering) -> Flags:
        """For each block of `offering`, whether its very slot is on offer in that place of the trie.

        Or may have been: a block has room for so many offers only.
        """
        found = np.zeros(len(offering.slots), np.bool_)
        tenancy, at = self._tenants.get(offering.tenant), 0
        wanted = offering.slots | (self._pool(offering.pool).number << SLOT_BITS)
        for offers in tenancy.trie.match_arrays(offering.tokens, offering.first, holes=True) if tenancy else ():
            end = at + offers.shape[1]
            found[at:end] = (offers == wanted[at:end]).any(axis=0)
            if len(offers) == OFFERS_PER_BLOCK:
                found[at:end] |= offers[-1] >= 0
            at = end
        return found

    def changes(self) -> Iterator[Change]:
        """All that stands, as the changes that make it from nothing; do not change the space meanwhile."""
        for pool in self.pools.values():
            yield PoolJoined(pool.record)
        for offering in self.offerings():
            yield offering.message()
        yield from self.promises

    def offerings(self, pools: Collection[str] | None = None) -> Iterator[Offering]:
        """All offers that stand (of these pools), older ones of a block before newer ones, prefixes before the rest.

        Do not change the space meanwhile.
        """
        for tenancy in self._tenants.values():
            for tokens, offers in tenancy.trie.items():
                start = len(tokens) // self.block_size - len(offers)
                for depth in reversed(range(max(map(len, offers)))):
                    level = np.array([each[depth] if depth < len(each) else -1 for each in offers], np.int64)
                    for offering in self._offered(tenancy.tenant, tokens, start, level):
                        if pools is None or offering.pool in pools:
                            yield offering

    def _offered(self, tenant: str, tokens: Int32s, first: int, level: Int64s) -> Iterator[Offering]:
        """The offers of consecutive blocks, one a block (-1: none), cut where the pool or the epoch changes."""
        numbers, slots = level >> SLOT_BITS, level & ((1 << SLOT_BITS) - 1)
        edges = np.flatnonzero(np.diff(numbers, prepend=-2)).tolist()
        for start, end in zip(edges, [*edges[1:], len(level)], strict=True):
            if numbers[start] < 0:
                continue
            pool, at = self._by_number[int(numbers[start])], start
            for run in pool.runs(slots[start:end]):
                prefix = tokens[: (first + at + len(run.slots)) * self.block_size]
                place = first + at
                yield Offering(run.pool, tenant, prefix, place, run.slots, run.epoch, run.generations, run.checksums)
                at += len(run.slots)

    def _runs(self, chosen: list[tuple[int, list[Int64s]]]) -> list[Run]:
        """The runs of consecutive offers, pieces of the same pool in one."""
        runs: list[Run] = []
        for number, parts in chosen:
            runs += self._by_number[number].runs(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return runs

    def _before(self, pool: Pool, offering: Offering) -> Place:
        """Where the block is that the offers go on from.

        Raises MissingBlockError unless it is on offer, and will be.
        """
        tenancy = self._tenants.get(offering.tenant)
        if tenancy is not None and len(pool.known(np.array([offering.after], np.int64))):
            place = tenancy.trie.place(offering.after | (pool.number << SLOT_BITS))
            stays = not (offering.slots == offering.after).any()
            if place is not None and stays and tenancy.trie.depth(place) == offering.first:
                return place
        raise MissingBlockError(f"offers that go on from slot {offering.after}, which is not on offer there")

    def _pool(self, name: str) -> Pool:
        pool = self.pools.get(name)
        if pool is None:
            raise MessageError(f"pool {name} is not known here")
        return pool

    def _tenancy(self, tenant: str) -> _Tenancy:
        found = self._tenants.get(tenant)
        if found is None:
            found = _Tenancy(next(self._numbers), tenant, PrefixTrie(self.block_size, max_blocks=self._max_blocks))
            self._tenants[tenant] = self._tenancies[found.number] = found
        return found

    def _take_down(self, pool: Pool, slots: Int64s) -> None:
        """Take down the offers of these slots, each of which has one."""
        if not len(slots):
            return
        offers = slots | (pool.number << SLOT_BITS)
        if len(self._tenancies) == 1:  # mostly so; what is on offer no more, it does not have either
            parts = [(number, offers) for number in self._tenancies]
        else:
            numbers = pool.tenancies[slots]
            parts = [(number, offers[numbers == number]) for number in set(numbers.tolist())]
        for number, part in parts:
            tenancy = self._tenancies.get(number)
            if tenancy is None:  # all of it was evicted
                continue
            tenancy.trie.remove(part, single=True)
            if not tenancy.trie:
                del self._tenants[tenancy.tenant], self._tenancies[number]
        pool.generations[slots] = 0
