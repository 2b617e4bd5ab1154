"""The control half of a market: tokens, offers, generations. It has no tensors, so a scheduler can hold it.

Every place where a generation is raised is here: `retire` and `fail_closed`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from kvmarket import counters
from kvmarket.errors import FingerprintError, KVMarketError, MisuseError, SlotError, TokenError
from kvmarket.fingerprint import Fingerprint
from kvmarket.layout import Layout
from kvmarket.ledger import Entry
from kvmarket.offer import Hit, Offers, PoolDescriptor
from kvmarket.own_pool import OwnPool
from kvmarket.pool import Generations, Slots, UInt64s
from kvmarket.registry.address import Address
from kvmarket.registry.client import Client
from kvmarket.registry.messages import Join, OfferBlocks, Retire, Run
from kvmarket.registry.tokens import Integers, as_tokens
from kvmarket.transport import Memory, ShmMemory

_descriptors = msgspec.msgpack.Decoder(PoolDescriptor)


class ControlHalf:
    """Joins the market for one engine; publishes, matches and retires for it. Thread-safe.

    Nothing here waits for a GPU or a peer.
    """

    def __init__(
        self,
        layout: Layout,
        ranks: Sequence[Memory],
        fingerprint: Fingerprint,
        tenant: str = "",
        address: str | os.PathLike[str] | None = None,
        staging: tuple[Layout, Sequence[Memory]] | None = None,
        generations: Generations | None = None,
        on_gone: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """Join the market at `address` with the pool that `layout` and `ranks` describe, and a staging pool if any.

        `generations`: those of the memory, where several markets share it. `on_gone` hears of pools that have gone, on
        a thread of the market's own. Starts the market's service if nobody has, which costs about a second; else this
        costs some milliseconds. Raises FingerprintError, LayoutError (an engine of this fingerprint has other
        geometry), AddressError, VersionError, NamespaceError, RefusedError.
        """
        check_identity(fingerprint, tenant)
        self.layout, self.tenant = layout, tenant
        self.block_size = layout.block_size
        self.pool = OwnPool(layout, ranks, generations)
        self._on_gone = on_gone
        self.staging = OwnPool(*staging) if staging else None
        self._pools = [self.pool, self.staging] if self.staging else [self.pool]
        self._known: dict[str, PoolDescriptor] = {}
        self._gone: list[str] = []
        self._unreachable: set[str] = set()
        self._closed = False
        self._lock = threading.RLock()
        kind = "shm" if isinstance(ranks[0], ShmMemory) else "cuda"
        join = Join(
            self.pool.descriptor.generations.owner,
            f"{fingerprint.hex}/{kind}/{len(ranks)}",
            layout.geometry(),
            layout.block_size,
            tuple(pool.record() for pool in self._pools),
        )
        try:
            self._client = Client(Address(address), join, self._forget, self._offer_again)
        except KVMarketError:
            for pool in self._pools:
                pool.close()
            raise

    def generations(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> UInt64s:
        """The generations of `slots` now: capture them when the blocks are published, hand them to `offer`.

        Raises SlotError.
        """
        generations = self._own(staged).generations
        return generations.read(generations.as_slots(slots))

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
        them. `checksums` go with the offers. Visible to others when the service has read the message; never waits.
        Raises TokenError, SlotError. Costs one pass over the prefix.
        """
        array, pool = as_tokens(tokens), self._own(staged)
        if (first + len(slots)) * self.block_size != len(array):
            raise TokenError(
                f"{len(array)} tokens are not {first} + {len(slots)} blocks of {self.block_size}; give the whole prefix"
            )
        with self._lock:
            ids = pool.generations.as_slots(slots)
            ledger = pool.standing()  # first: an epoch that is raised after this kills what is offered below
            live = pool.generations.still(ids, generations)
            if live < len(ids):
                counters.add("offer_dropped", len(ids) - live, reason="a slot was retired before its block was offered")
            if live == 0:
                return 0
            owner = self.tenant if tenant is None else tenant
            array = array[: (first + live) * self.block_size]
            names, values = ids[:live].tolist(), generations[:live].tolist()
            old = ledger.news(owner, array, first, names, values)
            if old < live:
                sums = b"" if checksums is None else checksums[old:live].tobytes()
                self._put_up(pool, Entry(owner, array, first + old, tuple(names[old:]), tuple(values[old:]), sums))
            return live

    def check_news(self, tokens: Integers, slots: Slots, generations: UInt64s) -> None:
        """Raise what `offer` would raise for these arguments; offers nothing."""
        with self._lock:
            self.pool.standing().news(self.tenant, as_tokens(tokens), 0, slots.tolist(), generations.tolist())

    def match(self, tokens: Integers, *, tenant: str | None = None, first: int = 0, own: bool = True) -> Hit:
        """The longest offered prefix of `tokens`, every whole block from block `first` on.

        Without this engine's own pools unless `own`.

        Never raises because the service is away: that is counted and is a hit of zero blocks. Raises TokenError. Costs
        one round trip to the service, some 0.2 ms at 8,192 tokens, and at most 0.25 s when it hangs.
        """
        array = as_tokens(tokens)
        owner = self.tenant if tenant is None else tenant
        unwanted = self._unreachable if own else self._unreachable | {pool.id for pool in self._pools}
        known = dict(self._known)
        answer = self._client.match(array.tobytes(), owner, first, tuple(unwanted), tuple(known))
        if answer is None:
            return Hit(0, 0, first, (), {})
        for record in answer.pools:
            try:
                self._known[record.pool] = known[record.pool] = _descriptors.decode(record.description)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                counters.add("pool_unreachable", reason=f"its description does not decode: {error}")
                self.avoid(record.pool)
                return Hit(0, 0, first, (), {})
        runs = tuple(_offers(run) for run in answer.runs)
        if any((run.slots >= known[run.pool].layout.slots).any() for run in runs):
            counters.add("pool_unreachable", reason="an offer names a slot that its pool does not have")
            return Hit(0, 0, first, (), {})
        blocks = sum(map(len, runs))
        return Hit(blocks * self.block_size, blocks, first, runs, {run.pool: known[run.pool] for run in runs})

    def retire(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> None:
        """Before these slots are overwritten.

        Raise their generations, so that no reader takes their bytes, then take their offers down.

        Every earlier offer is dead when this returns, whatever happens to the message. Raises SlotError. Costs some 20
        us for 1,000 slots.
        """
        pool = self._own(staged)
        ids = pool.generations.as_slots(slots)
        pool.generations.raise_slots(ids)  # first, and without waiting for whoever holds the lock
        with self._lock:
            gone = pool.ledger.drop(ids)
            if gone:
                self._client.send(Retire(pool.id, tuple(gone)))

    def fail_closed(self, reason: str) -> None:
        """Raise the epoch of every pool: all offers of this engine are dead when this returns.

        Counted under `reason`.
        """
        for pool in self._pools:
            pool.generations.raise_epoch()
        counters.add("failed_closed", reason=reason)
        with self._lock:
            for pool in self._pools:
                pool.standing().clear()
                self._client.send(Retire(pool.id, None))

    def avoid(self, pool: str) -> None:
        """Match no more in `pool`, which this engine cannot read."""
        with self._lock:
            self._unreachable = self._unreachable | {pool}

    def take_gone(self) -> list[str]:
        """The pools that have gone since the last call: data halves should forget them."""
        with self._lock:
            gone, self._gone = self._gone, []
            return gone

    def close(self) -> None:
        """Leave the market: every offer is dead, then taken down. May be called twice."""
        if not self._closed:
            self._closed = True
            for pool in self._pools:
                pool.generations.raise_slots(pool.ledger.slots())
            self._client.close()
            for pool in self._pools:
                pool.close()

    def _own(self, staged: bool) -> OwnPool:
        if not staged:
            return self.pool
        if self.staging is None:
            raise SlotError("this engine has no staging pool; give connect(..., staging_bytes=...)")
        return self.staging

    def _put_up(self, pool: OwnPool, entry: Entry) -> None:
        pool.ledger.add(entry)
        self._send_offer(pool, entry)

    def _send_offer(self, pool: OwnPool, entry: Entry) -> None:
        self._client.send(
            OfferBlocks(
                pool.id,
                entry.tenant,
                entry.tokens.tobytes(),
                entry.first,
                entry.slots,
                pool.epoch,
                entry.generations,
                entry.checksums,
            )
        )

    def _offer_again(self) -> None:
        """The service started anew and knows nothing: offer all that still stands. Runs on the watching thread."""
        with self._lock:
            for pool in self._pools:
                for entry in pool.standing().entries():
                    self._send_offer(pool, entry)

    def _forget(self, pools: tuple[str, ...]) -> None:
        """A notice: these pools are gone. Runs on the watching thread."""
        with self._lock:
            for pool in pools:
                self._known.pop(pool, None)
            self._unreachable = self._unreachable - set(pools)
            self._gone.extend(pools)
        if self._on_gone is not None:
            self._on_gone(pools)


def _offers(run: Run) -> Offers:
    """A run as it came from the service, as arrays."""
    checksums = np.frombuffer(run.checksums, np.uint64) if run.checksums else None
    generations = np.array(run.generations, np.uint64)
    return Offers(run.pool, run.epoch, np.array(run.slots, np.int64), generations, checksums)


def check_identity(fingerprint: Fingerprint, tenant: str) -> None:
    """Raise FingerprintError or MisuseError unless these can name who shares with whom."""
    if not isinstance(fingerprint, Fingerprint):
        raise FingerprintError(
            f"fingerprint is a {type(fingerprint).__name__}; make it with Fingerprint.of(model=..., dtype=...)"
        )
    if not isinstance(tenant, str):
        raise MisuseError(f"tenant is a {type(tenant).__name__}; give a string")
