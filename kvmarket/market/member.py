"""A member of a market: pools of its own, their offers, and matches with those of others. It has no tensors."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from kvmarket import counters
from kvmarket.errors import ClosedError, TokenError
from kvmarket.market.ledger import Ledger
from kvmarket.market.offer import Hit, PoolDescriptor
from kvmarket.market.own_pool import OwnPool, OwnPools
from kvmarket.market.peers import Peers
from kvmarket.pool import Slots, UInt64s
from kvmarket.pool.avoided import Avoided
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client.client import Client
from kvmarket.registry.client.home import Home
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Before, Join, PoolRecord
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.space import OnOffer
from kvmarket.registry.trie.tokens import Int32s, Integers, as_tokens
from kvmarket.support.flags import Flags


class MarketMember:
    """Offers slots of its pools, takes offers down, and matches. Thread-safe. Nothing here waits for a GPU or a peer.

    An engine is a `ControlHalf`; a lender has pools that come and go.
    """

    def __init__(
        self,
        pools: OwnPools,
        join: Join,
        fingerprint: str,
        tenant: str,
        address: str | os.PathLike[str] | None,
        on_gone: Callable[[Sequence[str]], None] | None,
        finds_own: bool,
        on_offer: OnOffer | None = None,
        on_far: Callable[[Sequence[PoolDescriptor]], None] | None = None,
    ) -> None:
        """Join the market at `address` with `pools`, by the message `join`; `close` closes the pools.

        `fingerprint`: noted in hits. `tenant`: of calls that name none. `on_offer`: see `Client`. The others and the
        errors: see `ControlHalf`.
        """
        self.tenant, self._fingerprint = tenant, fingerprint
        self.block_size = join.block_size
        self._on_gone, self._on_far = on_gone, on_far
        self._pools = pools
        self._avoided = Avoided()
        self._peers = Peers(self.avoid, self._avoided.for_now, lambda pool: self._client.descriptors(pool))
        self._gone: list[str] = []
        self._open_in = os.getpid()  # 0 when it is closed
        self._lock = threading.RLock()
        with ExitStack() as undo, self._lock:  # the watching thread calls back, which needs the client
            undo.callback(pools.close)
            undo.callback(self._peers.close)
            tells = pools.snapshot, self._go_on, pools.memory
            self._client = Client(
                Address(address), join, self._forget, *tells, finds_own, on_offer, on_far and self._meet
            )
            undo.pop_all()

    def prefix_of(self, pool: str, block: Before) -> tuple[str, Int32s] | None:
        """The tenant and the tokens of the prefix that ends in this block of `pool`; None if it is not on offer."""
        return self._client.prefix_of(pool, block)

    def crowded(self, tokens: Int32s, tenant: str) -> Flags:
        """For each leading block that others offer, whether so many do that the service may have dropped our offer."""
        return self._client.crowded(tokens, tenant)

    def lent_elsewhere(self, tokens: Int32s, hit: Hit, *, far: bool) -> Flags:
        """For each block of a hit of `tokens`, whether it is another lender's: of far memory, or of other memory."""
        if not hit.blocks:
            return np.zeros(0, np.bool_)
        if far:  # a hit does not name far pools where another one has the block
            return self._client.far_offers(tokens, hit.tenant, hit.first, self._pools.ids)[: hit.blocks]
        pools = [hit.pools[run.pool] for run in hit.runs]
        lent = [pool.lent and not pool.far for pool in pools]
        return np.concatenate([np.full(len(run), each) for run, each in zip(hit.runs, lent, strict=True)])

    def is_mine(self, key: bytes, *, far: bool = False) -> bool:
        """Whether it falls to this lender, of all in its space, to keep what `key` names: each has an equal share.

        `far`: whether those with far memory share out among them, or the others.
        """
        lenders = self._client.lenders(far=far)
        order = sorted((each.pid, each.start, each.namespace) for each in lenders)
        me = Process.current()
        mine = order.index((me.pid, me.start, me.namespace)) if me in lenders else 0
        return int.from_bytes(key[:8], "little") % max(1, len(order)) == mine

    def add_pool(self, pool: OwnPool) -> None:
        """Add a pool, whose slots may be offered from now on. Raises ClosedError."""
        self._check_open()
        with self._lock:
            self._pools.add(pool)
            self._client.add_pool(pool.record())

    def drop_pool(self, pool: OwnPool) -> None:
        """Kill all offers of a pool, take them down, and close the pool. It must not be the last one."""
        pool.kill()
        with self._lock:
            self._pools.remove(pool)
            self._client.drop_pool(pool.id)
            pool.close()

    def offer_from(
        self,
        pool: OwnPool,
        tokens: Integers,
        slots: Sequence[int] | Slots,
        generations: UInt64s,
        *,
        tenant: str | None = None,
        first: int = 0,
        checksums: UInt64s | None = None,
    ) -> int:
        """Offer blocks of one of this member's pools; see `ControlHalf.offer`."""
        array = as_tokens(tokens)
        if (first + len(slots)) * self.block_size != len(array):
            raise TokenError(
                f"{len(array)} tokens are not {first} + {len(slots)} blocks of {self.block_size}; give the whole prefix"
            )
        self._check_open()
        with self._lock:
            ids = pool.generations.as_slots(slots)
            ledger = self._standing(pool)  # first: if the epoch is raised after this, the offers below are dead
            live = pool.generations.still(ids, generations)
            if live < len(ids):
                counters.add("offer_dropped", len(ids) - live, reason="a slot was retired before its block was offered")
            if live == 0:
                return 0
            owner = self.tenant if tenant is None else tenant
            offering = self._offering(pool, array, ids, generations, owner, first, checksums).part(0, live)
            new = ledger.enter(offering)
            if new is not None:
                self._client.offer(new)
                counters.add("blocks_offered", len(new.slots))
            return live

    def match(self, tokens: Integers, *, tenant: str | None = None, first: int = 0) -> Hit:
        """Find the longest offered prefix of `tokens`: every whole block from block `first` on, up to one not offered.

        Dead offers are skipped: the block counts if another pool offers it, else the hit ends there. Answered from this
        engine's replica, whether or not the service runs. Raises TokenError. Costs about 20 us at 8,192 tokens (int32
        array), as much again for each pool with a dead offer, and 0.1 ms for a pool seen for the first time. With
        `finds_own`, offers that this engine has just made take up to 2 ms more.
        """
        array, owner = as_tokens(tokens), self.tenant if tenant is None else tenant
        match = partial(self._client.match, array, owner)
        found, pools = self._peers.leading(match, first, self._avoided.now())
        blocks = sum(map(len, found))
        return Hit(blocks * self.block_size, blocks, first, tuple(found), pools, self._fingerprint, owner)

    def peers(self) -> int:
        """Number of other engines that this one can exchange blocks with, as far as its replica knows."""
        return self._client.peers()

    @property
    def home(self) -> Home:
        """Where this engine has joined, and who is near."""
        return self._client.home

    def retire_from(self, pool: OwnPool, ids: Slots, *, take_down: bool = True) -> None:
        """Retire slots of one of this member's pools, which were checked; see `ControlHalf.retire`."""
        pool.kill(ids)  # first, and without waiting for the lock
        if take_down:
            self.take_down_from(pool, ids)

    def take_down_from(self, pool: OwnPool, ids: Slots) -> None:
        """Take down the offers of these slots of `pool`, which have been retired and checked."""
        with self._lock:
            gone = pool.ledger.drop(ids)
            if len(gone):
                self._client.retire(pool.id, gone)
                counters.add("blocks_retired", len(gone))

    def fail_closed(self, reason: str) -> None:
        """Raise the epoch of every pool: all offers of this engine are dead when this returns. Counts `reason`."""
        for pool in self._pools:
            pool.kill()
        counters.add("failed_closed", reason=reason)
        with self._lock:
            for pool in self._pools:
                self._standing(pool)

    def avoid(self, pool: str, for_now: bool = False) -> None:
        """Skip `pool` in every match, because this engine cannot read it; `for_now`: only for a while."""
        (self._avoided.for_now if for_now else self._avoided.for_good)(pool)

    def met(self) -> tuple[str, ...]:
        """The pools that hits have named and that have not left. After `close` nobody is told when they leave."""
        return self._peers.met()

    def take_gone(self) -> list[str]:
        """The pools that have left since the last call; data halves should forget them."""
        with self._lock:
            gone, self._gone = self._gone, []
            return gone

    def close(self) -> None:
        """Leave the market: every offer is dead, then taken down. May be called twice; does nothing in a fork."""
        if self._open_in == os.getpid():
            self._open_in = 0
            with self._lock:  # the ledger is not thread-safe, even when it is only read
                for pool in self._pools:
                    pool.kill(pool.ledger.slots())
            self._client.close()
            self._on_gone = self._on_far = None
            self._peers.close()
            self._pools.close()

    def _offering(
        self,
        pool: OwnPool,
        tokens: Int32s,
        slots: Slots,
        generations: UInt64s,
        tenant: str,
        first: int,
        checksums: UInt64s | None,
    ) -> Offering:
        """Put these blocks into an Offering, which keeps the given arrays."""
        return Offering(pool.id, tenant, tokens, first, slots, pool.epoch, generations, checksums)

    def _standing(self, pool: OwnPool) -> Ledger:
        """The ledger of a pool. If the pool's epoch was raised, first empties it and takes all its offers down."""
        if pool.catch_up():
            self._client.retire(pool.id, None)
            self._client.wake()  # to free the ledger's memory
        return pool.ledger

    def _check_open(self) -> None:
        if self._open_in != os.getpid():
            raise ClosedError("this engine has left the market, or is a fork of the one that joined; join again")

    def _go_on(self) -> bool:
        """Send the next part of a snapshot or free some memory; return whether there was any work.

        Runs on the client's thread.
        """
        with self._lock:  # no other thread offers meanwhile
            for pool in self._pools:
                self._standing(pool).noted()
            return self._client.go_on() or self._pools.collect()

    def _forget(self, pools: Sequence[str]) -> None:
        """Forget pools that have left the market. Runs on the client's thread."""
        self._peers.forget(pools)
        self._avoided.forget(pools)
        with self._lock:
            self._gone.extend(pools)
        if self._on_gone is not None:
            self._on_gone(pools)

    def _meet(self, records: Sequence[PoolRecord]) -> None:
        """Tell of far pools that have come and can be read by now. Runs on the client's thread."""
        near = [record for record in records if all(process.near for process in record.processes)]
        met = [peer.descriptor for record in near if (peer := self._peers.of(record)) is not None]
        if self._on_far is not None:
            self._on_far(met)
