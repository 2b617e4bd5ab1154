"""A space: all offers that engines of one kind can exchange, in one trie for all tenants. Pure data.

The service has one for each kind of engine. Every engine has one as its replica, and one per own pool as its ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import TypeAlias

import numpy as np

from kvmarket.errors import MessageError, MissingBlockError
from kvmarket.registry.protocol.messages import Before, PoolRecord, Promise
from kvmarket.registry.protocol.offering import Offering, array_of
from kvmarket.registry.space.far import Far
from kvmarket.registry.space.promises import Promises
from kvmarket.registry.space.standing import Pool, Run
from kvmarket.registry.trie.prefix_trie import PrefixTrie
from kvmarket.registry.trie.tokens import Int32s, Int64s
from kvmarket.registry.trie.tree import Place
from kvmarket.support.flags import Flags, leading
from kvmarket.support.sets import distinct

SLOT_BITS = 40  # an offer in a trie is pool number << 40 | slot, below 2**63
SLOT_MASK = (1 << SLOT_BITS) - 1
_SLOTS = np.uint64(1 << SLOT_BITS)
MAX_BLOCKS = 1 << 24  # in one space; beyond it the least recently matched blocks are evicted
FEW = 16  # offers that are taken out of the trie at a time: about 0.2 ms if each has a node of its own
PART = 1 << 12  # slots of which those with ended offers are looked for at a time: about 20 us

# called with each run of added offers: its pool, its last block, and the block that it goes on from, if that was told
OnOffer: TypeAlias = Callable[[PoolRecord, Before, Before | None], None]


class Space:
    """Pools and the offers of their slots. A method that raises has changed nothing. Not thread-safe.

    Offers that are taken down are ended at once. If they are many, `collect` takes them out of the trie later, a few at
    a time.
    """

    def __init__(self, block_size: int, max_blocks: int | None = MAX_BLOCKS) -> None:
        """Make an empty space for blocks of `block_size` tokens, at most `max_blocks` of them (see PrefixTrie)."""
        self.block_size = block_size
        self.trie = PrefixTrie(block_size, max_blocks=max_blocks)
        self.pools: dict[str, Pool] = {}
        self.by_number: dict[int, Pool] = {}
        self._far = Far()
        self.promises = Promises(block_size)
        self.on_offer: OnOffer | None = None
        self._numbers = count(1)
        self._free: list[int] = []  # numbers that may be used again
        self._leaving: set[int] = set()  # numbers of which the trie still holds ended offers
        self._garbage: deque[Iterator[None]] = deque()

    @property
    def blocks(self) -> int:
        """Number of offered blocks, over all tenants. Counts ended offers too until they are collected."""
        return len(self.trie)

    def add_pool(self, record: PoolRecord) -> Pool:
        """Add a pool, or return the known one. Costs next to nothing until its slots are offered."""
        pool = self.pools.get(record.pool)
        if pool is None:
            pool = self.pools[record.pool] = Pool(self._number(record.slots), record)
            self._enter(pool)
        return pool

    def drop_pool(self, name: str) -> None:
        """Forget a pool and its offers; ignore an unknown pool. Costs a few us, and `collect` later."""
        pool = self.pools.pop(name, None)
        if pool is not None:
            self._leave(pool)
            self.promises.drop(name)

    def offer(self, offering: Offering) -> None:
        """Add offers; each replaces an older offer of its slot.

        Raises MessageError for an unknown pool, for slots that the pool does not have or that are repeated, and for
        offers older than the present ones; MissingBlockError unless exactly the block `offering.before` is offered.
        Costs one insertion of the prefix, O(its tokens) by memcmp, and O(offered blocks); almost nothing if known.
        """
        pool = self._pool(offering.pool)
        slots, generations, epoch = offering.slots, offering.generations, offering.epoch
        old = pool.known(slots)
        if len(distinct(slots)) < len(slots):
            raise MessageError("an offer that names a slot twice")
        if len(old):
            same = pool.same(slots, epoch, generations)
            if leading(same) == len(same):
                pool.see(slots)
                return  # else all old ones are taken out, equal ones too: no offer may be on two blocks
            if pool.newer(slots, epoch, generations).any():
                raise MessageError("an offer older than the one that stands")
        place = self._place(pool, offering, offering.before) if offering.before is not None else None
        if pool.lates:
            old = np.concatenate((old, slots[pool.late[slots]]))
        if len(old):
            self._take_out(pool, old)
            place = None  # the block may be elsewhere now
        names = slots | (pool.number << SLOT_BITS)
        if offering.before is None:
            self.trie.insert(offering.tokens, names, first=offering.first, tenant=offering.tenant.encode())
        else:
            self.trie.extend(offering.before.slot | (pool.number << SLOT_BITS), offering.tokens, names, place)
        pool.note(slots, epoch, generations, offering.checksums)
        if self.on_offer is not None:
            self.on_offer(pool.record, offering.at(len(slots) - 1), offering.before)

    def fan(self, offering: Offering) -> bool:
        """Add offers of sibling blocks: each of them continues `offering.before`. Costs 6 us each.

        As `offer` of each. Returns False, and does nothing, if they must be offered one by one. The slots must be in
        range and distinct, and without newer offers. Raises as `offer`.
        """
        pool, slots, before = self._pool(offering.pool), offering.slots, offering.before
        if before is None or (pool.generations[slots] != 0).any() or (pool.lates and pool.late[slots].any()):
            return False
        width, data = 4 * self.block_size, offering.tokens.tobytes()
        heads = [data[at : at + width] for at in range(0, len(data), width)]
        place = self._place(pool, offering, before)
        if not self.trie.fan(place, heads, slots | (pool.number << SLOT_BITS)):
            return False
        pool.note(slots, offering.epoch, offering.generations, offering.checksums)
        if self.on_offer is not None:
            for at in range(len(slots)):
                self.on_offer(pool.record, offering.at(at), before)
        return True

    def retire(self, name: str, slots: Int64s | None) -> Int64s:
        """Take down the offers of `slots` (None: of all slots); return the slots that had one.

        Raises MessageError for an unknown pool or slots that it does not have. Costs a few us, and the removal of up to
        `FEW` offers; more are left to `collect`.
        """
        pool = self._pool(name)
        gone = pool.standing() if slots is None else distinct(pool.known(slots))
        if slots is None:
            self.promises.drop(name)
            self._leave(pool)
            pool.anew(self._number(pool.record.slots))
            self._enter(pool)
        elif len(gone) <= FEW:
            self._take_out(pool, gone)
        else:
            pool.generations[gone] = 0
            pool.late[gone] = True
            pool.lates += len(gone)
            self._garbage.append(self._take_out_late(pool, pool.number, gone))
        return gone

    @property
    def collecting(self) -> bool:
        """Whether the trie still holds ended offers."""
        return bool(self._garbage)

    def collect(self) -> None:
        """Take some ended offers out of the trie. Costs up to about 0.3 ms."""
        if self._garbage and next(self._garbage[0], self) is self:
            self._garbage.popleft()

    def promise(self, promise: Promise) -> None:
        """Add a promise. Raises MessageError for an unknown pool, or tokens that are not a whole number of int32."""
        self._pool(promise.pool)
        array_of(promise.tokens, np.dtype(np.int32))
        self.promises.add(promise)

    def match(self, tokens: Int32s, tenant: str, first: int, without: Collection[str]) -> list[Run]:
        """The longest offered prefix from block `first` on, as runs in block order.

        Ignores offers of the pools `without`. If several pools offer a block, takes one that is not far; of these the
        pool of the block before, else the newest offer. Costs one match of the trie and about 10 us a run.
        """
        unwanted = self._leaving
        if without:
            unwanted = unwanted | {self.pools[pool].number for pool in without if pool in self.pools}
        chosen: list[tuple[int, list[Int64s]]] = []  # the number of a pool, and slots of it
        number = 0
        for offers in self.trie.match_arrays(tokens, first, tenant=tenant.encode()):
            if self._far and len(offers) > 1:
                offers = self._far.without(offers >> SLOT_BITS, offers, unwanted)
            while offers.shape[1]:
                single = len(offers) == 1  # the usual case
                there = (int(offers[0, 0]) >> SLOT_BITS,) if single else (offers[:, 0] >> SLOT_BITS).tolist()
                if number not in there:
                    number = next((n for n in there if n >= 0 and n not in unwanted), 0)
                    if not number:
                        return self._runs(chosen)
                    chosen.append((number, []))
                slots = (offers[0] if single else offers) ^ (number << SLOT_BITS)  # upper bits stay set if the offer
                held = slots.view(np.uint64) < _SLOTS  # is of another pool, or there is none
                if not single:
                    slots, held = slots[held.argmax(axis=0), np.arange(held.shape[1])], held.any(axis=0)
                blocks = leading(held)
                chosen[-1][1].append(slots[:blocks])
                if blocks == offers.shape[1]:
                    break
                offers = offers[:, blocks:]
        return self._runs(chosen)

    def _runs(self, chosen: list[tuple[int, list[Int64s]]]) -> list[Run]:
        """Make runs of the chosen slots, up to the first offer that has ended."""
        runs: list[Run] = []
        for number, parts in chosen:
            pool = self.by_number[number]
            slots = parts[0] if len(parts) == 1 else np.concatenate(parts)
            stands = leading(pool.generations[slots] != 0) if pool.lates else len(slots)
            if stands:
                runs += pool.runs(slots[:stands])
            if stands < len(slots):
                break
        return runs

    def _place(self, pool: Pool, offering: Offering, before: Before) -> Place:
        """The place of the block `before`, which the offers continue.

        Raises MissingBlockError unless exactly that block is offered and `offering` does not replace it.
        """
        goes_on = pool.has(before) and not (offering.slots == before.slot).any()
        place = self.trie.place(before.slot | (pool.number << SLOT_BITS)) if goes_on else None
        if place is not None:
            at, tenant = self.trie.depth(place), self.trie.tenant(place)
            if (at, tenant) == (offering.first, offering.tenant.encode()):
                return place
        raise MissingBlockError(
            f"offers that go on from slot {before.slot} at generation {before.generation}, which is not on offer there"
        )

    def _pool(self, name: str) -> Pool:
        pool = self.pools.get(name)
        if pool is None:
            raise MessageError(f"pool {name} is not known here")
        return pool

    def _number(self, slots: int) -> int:
        """Take a free number for the offers of a pool of `slots` slots."""
        number = self._free.pop() if self._free else next(self._numbers)
        self.trie.expect(number << SLOT_BITS, slots)
        return number

    def _enter(self, pool: Pool) -> None:
        """Let the pool be found by its number."""
        self.by_number[pool.number] = pool
        if pool.record.far:
            self._far.add(pool.number)

    def _leave(self, pool: Pool) -> None:
        """End all offers under the pool's number. `collect` frees the number when the trie holds none of them."""
        del self.by_number[pool.number]
        self._far.remove(pool.number)
        self._leaving.add(pool.number)
        self._garbage.append(self._take_out_all(pool.number, pool.generations, pool.late))

    def _take_out(self, pool: Pool, slots: Int64s) -> None:
        """End the offers of these slots and take them out of the trie."""
        if len(slots):
            self.trie.remove(slots | (pool.number << SLOT_BITS))
            pool.generations[slots] = 0
            if pool.lates:
                pool.lates -= int(np.count_nonzero(pool.late[slots]))
                pool.late[slots] = False

    def _take_out_late(self, pool: Pool, number: int, slots: Int64s) -> Iterator[None]:
        """Take the ended offers of these slots out of the trie, a few at a time, unless offered again meanwhile."""
        for begin in range(0, len(slots), PART):
            if begin:
                yield  # a step a part, though all of it is offered again
            part = slots[begin : begin + PART]
            late = part[pool.late[part]]
            for start in range(0, len(late), FEW):
                if pool.number != number:  # all offers of the pool were ended meanwhile
                    return
                few = late[start : start + FEW]
                self._take_out(pool, few[pool.late[few]])
                yield

    def _take_out_all(self, number: int, generations: np.ndarray, late: Flags) -> Iterator[None]:
        """Take all offers under a number out of the trie, a few at a time, then free the number."""
        for begin in range(0, len(generations), 1 << 16):
            part = slice(begin, begin + (1 << 16))
            slots = np.flatnonzero((generations[part] != 0) | late[part]) + begin
            for start in range(0, len(slots) or 1, FEW):  # a step a part, though it be empty: to look costs 60 us
                self.trie.remove(slots[start : start + FEW] | (number << SLOT_BITS))
                yield
        self.trie.forget(number << SLOT_BITS, len(generations))
        self._leaving.discard(number)
        self._free.append(number)
