"""The control half of a market: tokens, offers, generations. It has no tensors, so a scheduler can hold it.

Generations are raised by `OwnPool.kill`, which `retire`, `fail_closed` and `close` call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count

from kvmarket import counters
from kvmarket.errors import ClosedError, TokenError
from kvmarket.fingerprint import Fingerprint, check_identity
from kvmarket.market.avoided import Avoided
from kvmarket.market.ledger import Ledger
from kvmarket.market.offer import Hit, Stage
from kvmarket.market.own_pool import OwnPool, OwnPools
from kvmarket.market.peers import Peers
from kvmarket.pool import Generations, Slots, UInt64s
from kvmarket.registry.client.client import Client
from kvmarket.registry.client.home import Home
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.protocol.status import NO_LABEL, Label
from kvmarket.registry.trie.tokens import Int32s, Integers, as_tokens


class ControlHalf:
    """Joins the market for one engine; publishes, matches and retires for it. Thread-safe.

    Nothing here waits for a GPU or a peer.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        fingerprint: Fingerprint,
        tenant: str = "",
        address: str | os.PathLike[str] | None = None,
        staging: Sequence[Stage] | None = None,
        generations: Generations | None = None,
        on_gone: Callable[[Sequence[str]], None] | None = None,
        finds_own: bool = True,
        label: Label = NO_LABEL,
    ) -> None:
        """Join the market at `address` with the pool of `stages`, and with a staging pool if `staging` is given.

        `generations`: of the cache's memory, where several markets share it. `on_gone` is called with the ids of pools
        that left, on a thread of the market. `finds_own`: whether `match` finds this engine's own offers. `label`: the
        engine's name in `kvmarket top`. If no service runs, starts one, which takes about a second; else costs a few
        ms. Raises FingerprintError, LayoutError (another engine with this fingerprint has a different geometry),
        AddressError, VersionError, NamespaceError, RefusedError.
        """
        check_identity(fingerprint, tenant)
        self.tenant, self._fingerprint = tenant, fingerprint.hex
        self.block_size = stages[0].layout.block_size
        self._on_gone = on_gone
        self._pools = OwnPools(OwnPool(stages, generations), OwnPool(staging) if staging else None)
        self.pool, self.staging = self._pools.pool, self._pools.staging
        self._avoided = Avoided()
        self._peers = Peers(self.avoid, self._avoided.for_now, lambda pool: self._client.descriptors(pool))
        self._gone: list[str] = []
        self._promises = count(1)
        self._open_in = os.getpid()  # 0 when it is closed
        self._lock = threading.RLock()
        join, place = self._pools.joining(fingerprint, stages, label), Address(address)
        with ExitStack() as undo, self._lock:  # the watching thread calls back, which needs the client
            undo.callback(self._pools.close)
            undo.callback(self._peers.close)
            tells = self._pools.snapshot, self._go_on, self._pools.memory
            self._client = Client(place, join, self._forget, *tells, finds_own)
            undo.pop_all()

    def generations(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> UInt64s:
        """The current generations of `slots`. Read them when blocks are published, and pass them to `offer` later.

        Raises SlotError.
        """
        generations = self._pools.of(staged).generations
        return generations.read(generations.as_slots(slots))

    def checked(self, slots: Sequence[int] | Slots) -> Slots:
        """Slots of the engine's own pool as an array. Raises SlotError unless all are in range and none is repeated."""
        return self.pool.generations.as_slots(slots)

    def still(self, slots: Slots, generations: UInt64s) -> int:
        """Number of leading slots of the engine's own pool that still have these generations."""
        return self.pool.generations.still(slots, generations)

    def offer(
        self,
        tokens: Integers,
        slots: Sequence[int] | Slots,
        generations: UInt64s,
        *,
        tenant: str | None = None,
        first: int = 0,
        staged: bool = False,
        checksums: UInt64s | None = None,
    ) -> int:
        """Offer blocks `first` ... of the prefix `tokens`, which lie in `slots`; return how many are offered.

        `generations`: of the slots when the blocks were published. Stops at the first slot that was retired since: its
        block and the following ones are not offered. Call it only when the work that wrote the blocks has completed.
        `checksums` are sent with the offers. Others see the offers when the service has read the message; this call
        never waits. Keeps the arrays: do not write to them any more. Raises TokenError, SlotError, ClosedError. Costs
        one pass over the prefix.
        """
        array, pool = as_tokens(tokens), self._pools.of(staged)
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
            offering = self._offering(pool, array, ids, generations, tenant, first, checksums).part(0, live)
            new = ledger.enter(offering)
            if new is not None:
                self._client.offer(new)
                counters.add("blocks_offered", len(new.slots))
            return live

    def check_news(self, tokens: Integers, slots: Slots, generations: UInt64s) -> None:
        """Raise the SlotError that `offer` would raise for these blocks of the engine's own pool; offer nothing."""
        with self._lock:
            ledger = self._standing(self.pool)
            ledger.news(self._offering(self.pool, as_tokens(tokens), slots, generations, None, 0, None))

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

    def promise(self, tokens: Integers, *, tenant: str | None = None) -> int:
        """Tell others that this engine computes the prefix `tokens` and will offer it; return a number for `settle`.

        Other engines may wait for these blocks instead of computing them too. Only a hint: no fetch relies on it.
        Raises TokenError and ClosedError. Costs 10 us and 1 us a KiB.
        """
        array = as_tokens(tokens)
        self._check_open()
        with self._lock:
            number = next(self._promises)
            self._client.promise(self.pool.id, self.tenant if tenant is None else tenant, array, number)
        return number

    def settle(self, number: int) -> None:
        """End the promise `number`: its blocks are offered, or will not be. Call it after the `offer` of the blocks."""
        with self._lock:
            self._client.settle(self.pool.id, number)

    def promised(self, tokens: Integers, *, tenant: str | None = None) -> int:
        """Number of leading whole blocks of `tokens` that other engines have promised. Raises TokenError.

        Costs a few us.
        """
        owner = self.tenant if tenant is None else tenant
        return self._client.promised(as_tokens(tokens), owner, self._pools.ids)

    def peers(self) -> int:
        """Number of other engines that this one can exchange blocks with, as far as its replica knows."""
        return self._client.peers()

    @property
    def home(self) -> Home:
        """Where this engine has joined, and who is near."""
        return self._client.home

    def retire(self, slots: Sequence[int] | Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """Raise the generations of these slots, then take their offers down. Call it before the slots are overwritten.

        Every earlier offer is dead when this returns, even if the message to the service is lost. With
        ``take_down=False`` only the generations are raised: others still find the offers, but see that they are dead.
        Call `take_down` later, before one of these slots is offered again. Raises SlotError. Costs about 20 us for
        1,000 slots, plus the cost of `take_down`.
        """
        self.retire_checked(self._pools.of(staged).generations.as_slots(slots), staged=staged, take_down=take_down)

    def retire_checked(self, ids: Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """As `retire`, for slots that were checked: all must be in range, and none repeated."""
        pool = self._pools.of(staged)
        pool.kill(ids)  # first, and without waiting for the lock
        if take_down:
            self._take_down(pool, ids)

    def take_down(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> None:
        """Take down the offers of these slots, which have been retired.

        Never waits. Raises SlotError. Costs a few us for each run of offered blocks.
        """
        pool = self._pools.of(staged)
        self._take_down(pool, pool.generations.as_slots(slots))

    def _take_down(self, pool: OwnPool, ids: Slots) -> None:
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
            self._on_gone = None
            self._peers.close()
            self._pools.close()

    def _offering(
        self,
        pool: OwnPool,
        tokens: Int32s,
        slots: Slots,
        generations: UInt64s,
        tenant: str | None,
        first: int,
        checksums: UInt64s | None,
    ) -> Offering:
        """Put these blocks into an Offering, which keeps the given arrays."""
        owner = self.tenant if tenant is None else tenant
        return Offering(pool.id, owner, tokens, first, slots, pool.epoch, generations, checksums)

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
