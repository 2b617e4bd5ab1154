"""The control half of a market: tokens, offers, generations. It has no tensors, so a scheduler can hold it.

Generations are raised where `OwnPool.kill` is called: by `retire`, `fail_closed` and `close`.
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
        """Join the market at `address` with the pool that `stages` make up, and a staging pool if any.

        `generations`: those of the memory, where several markets share it. `on_gone` hears of pools that have gone, on
        a thread of the market's own. `finds_own`: whether `match` finds what this engine itself offers. `label`: what
        `kvmarket top` calls this engine. Starts the market's service if nobody has, which costs about a second; else
        this costs some milliseconds. Raises FingerprintError, LayoutError (an engine of this fingerprint has other
        geometry), AddressError, VersionError, NamespaceError, RefusedError.
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
        """The generations of `slots` now: capture them when the blocks are published, hand them to `offer`.

        Raises SlotError.
        """
        generations = self._pools.of(staged).generations
        return generations.read(generations.as_slots(slots))

    def checked(self, slots: Sequence[int] | Slots) -> Slots:
        """Slots of the engine's own pool as an array. Raises SlotError unless all are in range and none comes twice."""
        return self.pool.generations.as_slots(slots)

    def still(self, slots: Slots, generations: UInt64s) -> int:
        """How many leading slots of the engine's own pool still have these generations."""
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
        """Offer blocks `first` ... of the prefix `tokens`, complete in `slots` since they had `generations`.

        How many leading ones still had them.

        Call it only when what wrote the blocks has completed. Slots retired since are left out, with all that follow
        them. `checksums` go with the offers. Visible to others when the service has read the message; never waits. Do
        not write to the arrays given any more. Raises TokenError, SlotError, ClosedError. Costs one pass over the
        prefix.
        """
        array, pool = as_tokens(tokens), self._pools.of(staged)
        if (first + len(slots)) * self.block_size != len(array):
            raise TokenError(
                f"{len(array)} tokens are not {first} + {len(slots)} blocks of {self.block_size}; give the whole prefix"
            )
        self._check_open()
        with self._lock:
            ids = pool.generations.as_slots(slots)
            ledger = self._standing(pool)  # first: an epoch that is raised after this kills what is offered below
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
        """Raise what `offer` would raise for these arguments; offers nothing."""
        with self._lock:
            ledger = self._standing(self.pool)
            ledger.news(self._offering(self.pool, as_tokens(tokens), slots, generations, None, 0, None))

    def match(self, tokens: Integers, *, tenant: str | None = None, first: int = 0) -> Hit:
        """The longest offered prefix of `tokens`, every whole block from block `first` on.

        Offers that are dead already do not count: others of the same blocks do, if there are any, else nothing that
        follows. Answered from this engine's replica, whether or not the service lives. Raises TokenError. Costs some
        20 us at 8,192 tokens (int32 array) and as much again for a pool with a dead offer on the way, at most 2 ms more
        for what was just offered where this engine finds its own, and 0.1 ms for a pool seen for the first time.
        """
        array, owner = as_tokens(tokens), self.tenant if tenant is None else tenant
        match = partial(self._client.match, array, owner)
        found, pools = self._peers.leading(match, first, self._avoided.now())
        blocks = sum(map(len, found))
        return Hit(blocks * self.block_size, blocks, first, tuple(found), pools, self._fingerprint, owner)

    def promise(self, tokens: Integers, *, tenant: str | None = None) -> int:
        """Say that this engine has begun to compute the prefix `tokens`, and will offer it; a number for `settle`.

        Others may wait for it instead of computing it too. A hint: nothing is fetched because of it. Raises TokenError
        and ClosedError. Costs 10 us and 1 us a KiB.
        """
        array = as_tokens(tokens)
        self._check_open()
        with self._lock:
            number = next(self._promises)
            self._client.promise(self.pool.id, self.tenant if tenant is None else tenant, array, number)
        return number

    def settle(self, number: int) -> None:
        """A promise stands no longer: its blocks are on offer, or will not be. Call it behind their `offer`."""
        with self._lock:
            self._client.settle(self.pool.id, number)

    def promised(self, tokens: Integers, *, tenant: str | None = None) -> int:
        """How many leading whole blocks of `tokens` other engines are computing right now. Raises TokenError.

        Costs some us.
        """
        owner = self.tenant if tenant is None else tenant
        return self._client.promised(as_tokens(tokens), owner, self._pools.ids)

    def peers(self) -> int:
        """How many other engines could exchange blocks with this one, as far as is known now."""
        return self._client.peers()

    @property
    def home(self) -> Home:
        """Where this engine has joined, and who is near."""
        return self._client.home

    def retire(self, slots: Sequence[int] | Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """Before these slots are overwritten.

        Raise their generations, so that no reader takes their bytes, then take their offers down.

        Every earlier offer is dead when this returns, whatever happens to the message. Without `take_down` dead offers
        are still found and passed over until `take_down` is called, which must be before one of these slots is offered
        again. Raises SlotError. Costs some 20 us for 1,000 slots, and what `take_down` does.
        """
        self.retire_checked(self._pools.of(staged).generations.as_slots(slots), staged=staged, take_down=take_down)

    def retire_checked(self, ids: Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """What `retire` does, for slots that were checked: they must be in range, and none may come twice."""
        pool = self._pools.of(staged)
        pool.kill(ids)  # first, and without waiting for whoever holds the lock
        if take_down:
            self._take_down(pool, ids)

    def take_down(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> None:
        """Take down what is on offer in these slots, which have been retired.

        Never waits. Raises SlotError. Costs some us for each run of blocks that were on offer.
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
        """Raise the epoch of every pool: all offers of this engine are dead on return; counted under `reason`."""
        for pool in self._pools:
            pool.kill()
        counters.add("failed_closed", reason=reason)
        with self._lock:
            for pool in self._pools:
                self._standing(pool)

    def avoid(self, pool: str, for_now: bool = False) -> None:
        """Match no more in `pool`, which this engine cannot read; `for_now`: until it is tried again."""
        (self._avoided.for_now if for_now else self._avoided.for_good)(pool)

    def met(self) -> tuple[str, ...]:
        """The pools that our hits may have had mapped: whoever leaves the market hears of their end no more."""
        return self._peers.met()

    def take_gone(self) -> list[str]:
        """The pools that have gone since the last call: data halves should forget them."""
        with self._lock:
            gone, self._gone = self._gone, []
            return gone

    def close(self) -> None:
        """Leave the market: every offer is dead, then taken down. May be called twice; nothing in a fork of ours.

        What retires and takes down goes on doing so here, and tells nobody; `match` finds nothing.
        """
        if self._open_in == os.getpid():
            self._open_in = 0
            with self._lock:  # asked, the ledger notes what was offered: not while another thread has it do so
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
        """These blocks as an offering: views of the arrays given."""
        owner = self.tenant if tenant is None else tenant
        return Offering(pool.id, owner, tokens, first, slots, pool.epoch, generations, checksums)

    def _standing(self, pool: OwnPool) -> Ledger:
        """The ledger of a pool; where somebody has raised its epoch, all of it is taken down first."""
        if pool.catch_up():
            self._client.retire(pool.id, None)
            self._client.wake()  # to collect
        return pool.ledger

    def _check_open(self) -> None:
        if self._open_in != os.getpid():
            raise ClosedError("this engine has left the market, or is a fork of the one that joined; join again")

    def _go_on(self) -> bool:
        """Tell the service, and tidy up, a little more; whether there was anything. Runs on the watching thread."""
        with self._lock:  # nobody offers meanwhile
            for pool in self._pools:
                self._standing(pool).noted()
            return self._client.go_on() or self._pools.collect()

    def _forget(self, pools: Sequence[str]) -> None:
        """These pools are gone. Runs on the watching thread."""
        self._peers.forget(pools)
        self._avoided.forget(pools)
        with self._lock:
            self._gone.extend(pools)
        if self._on_gone is not None:
            self._on_gone(pools)
