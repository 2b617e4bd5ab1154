"""The control half of a market: tokens, offers, generations. It has no tensors, so a scheduler can hold it.

Generations are raised by `OwnPool.kill`, which `retire`, `fail_closed` and `close` call.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from kvmarket.errors import SlotError
from kvmarket.fingerprint import Fingerprint, check_identity
from kvmarket.market.member import MarketMember
from kvmarket.market.offer import PoolDescriptor, Stage
from kvmarket.market.own_pool import OwnPool, OwnPools
from kvmarket.pool import Generations, Slots, UInt64s
from kvmarket.registry.protocol.messages import MAX_POOLS
from kvmarket.registry.protocol.status import NO_LABEL, Label
from kvmarket.registry.trie.tokens import Integers, as_tokens


class ControlHalf(MarketMember):
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
        on_far: Callable[[Sequence[PoolDescriptor]], None] | None = None,
        finds_own: bool = True,
        label: Label = NO_LABEL,
    ) -> None:
        """Join the market at `address` with the pool of `stages`, and with a staging pool if `staging` is given.

        `generations`: of the cache's memory, where several markets share it. `on_gone` is called with the ids of pools
        that left, and `on_far` with far pools that came, on a thread of the market; without `on_far` see `take_far`.
        `finds_own`: whether `match` finds this engine's own offers. `label`: the
        engine's name in `kvmarket top`. If no service runs, starts one, which takes about a second; else costs a few
        ms. Raises FingerprintError, LayoutError (another engine with this fingerprint has a different geometry),
        AddressError, VersionError, NamespaceError, RefusedError.
        """
        check_identity(fingerprint, tenant)
        self.pool, self.staging = OwnPool(stages, generations), OwnPool(staging) if staging else None
        self._promises = count(1)
        pools = OwnPools([self.pool, self.staging] if self.staging else [self.pool])
        join = pools.joining(fingerprint, stages, label)
        self._far: deque[PoolDescriptor] = deque(maxlen=MAX_POOLS)
        on_far = on_far or self._far.extend
        super().__init__(pools, join, fingerprint.hex, tenant, address, on_gone, finds_own, on_far=on_far)

    def generations(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> UInt64s:
        """The current generations of `slots`. Read them when blocks are published, and pass them to `offer` later.

        Raises SlotError.
        """
        generations = self._of(staged).generations
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
        pool = self._of(staged)
        return self.offer_from(pool, tokens, slots, generations, tenant=tenant, first=first, checksums=checksums)

    def check_news(self, tokens: Integers, slots: Slots, generations: UInt64s) -> None:
        """Raise the SlotError that `offer` would raise for these blocks of the engine's own pool; offer nothing."""
        with self._lock:
            ledger = self._standing(self.pool)
            ledger.news(self._offering(self.pool, as_tokens(tokens), slots, generations, self.tenant, 0, None))

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

    def retire(self, slots: Sequence[int] | Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """Raise the generations of these slots, then take their offers down. Call it before the slots are overwritten.

        Every earlier offer is dead when this returns, even if the message to the service is lost. With
        ``take_down=False`` only the generations are raised: others still find the offers, but see that they are dead.
        Call `take_down` later, before one of these slots is offered again. Raises SlotError. Costs about 20 us for
        1,000 slots, plus the cost of `take_down`.
        """
        self.retire_checked(self._of(staged).generations.as_slots(slots), staged=staged, take_down=take_down)

    def retire_checked(self, ids: Slots, *, staged: bool = False, take_down: bool = True) -> None:
        """As `retire`, for slots that were checked: all must be in range, and none repeated."""
        self.retire_from(self._of(staged), ids, take_down=take_down)

    def take_down(self, slots: Sequence[int] | Slots, *, staged: bool = False) -> None:
        """Take down the offers of these slots, which have been retired.

        Never waits. Raises SlotError. Costs a few us for each run of offered blocks.
        """
        pool = self._of(staged)
        self.take_down_from(pool, pool.generations.as_slots(slots))

    def take_far(self) -> list[PoolDescriptor]:
        """The far pools that have come since the last call; data halves should map them ahead. Costs less than 1 us."""
        return [self._far.popleft() for _ in range(len(self._far))]

    def _of(self, staged: bool) -> OwnPool:
        """The pool of the cache, or the staging pool. Raises SlotError where there is none."""
        if not staged:
            return self.pool
        if self.staging is None:
            raise SlotError("this engine has no staging pool; give connect(..., staging_bytes=...)")
        return self.staging
