"""The facade: one engine's market. `publish`, `match`, `fetch`, `retire`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import msgspec
import torch

from kvmarket import counters
from kvmarket.bounds import check_count, check_size, check_tokens
from kvmarket.errors import KVMarketError, LayoutError, MisuseError, SlotError
from kvmarket.fingerprint import Fingerprint, check_identity
from kvmarket.layout.paged import PagedCache
from kvmarket.market.fetch import Fetch
from kvmarket.market.membership import Membership
from kvmarket.market.offer import Hit
from kvmarket.pool import Slots, UInt64s, as_slots
from kvmarket.pool.landings import Landing, Purpose
from kvmarket.registry.trie.tokens import Int32s, Integers, as_tokens
from kvmarket.support.flags import Flags, leading


def connect(
    cache: PagedCache,
    fingerprint: Fingerprint,
    tenant: str = "",
    staging_bytes: int = 0,
    address: str | os.PathLike[str] | None = None,
    *,
    programs: int | None = None,
    checksums: bool = True,
) -> Market:
    """Join the node's market with `cache`, and start its service if none runs. See `Market`."""
    return Market(cache, fingerprint, tenant, staging_bytes, address, programs=programs, checksums=checksums)


class Market:
    """One engine's membership of the node's market. A context manager; several in one process are fine.

    Thread-safe, but the engine must keep the order `retire`, write, `publish` for each slot. After `close`, and in a
    fork of the process, methods raise ClosedError. A market that is dropped without `close` is closed and counted.
    """

    def __init__(
        self,
        cache: PagedCache,
        fingerprint: Fingerprint,
        tenant: str = "",
        staging_bytes: int = 0,
        address: str | os.PathLike[str] | None = None,
        *,
        programs: int | None = None,
        checksums: bool = True,
    ) -> None:
        """Join with `cache`. CPU tensors are moved into shared memory in place, CUDA tensors are exported by IPC.

        `fingerprint`: everything that must agree before KV may be reused. `tenant`: a salt that keeps two users'
        prefixes apart. `staging_bytes`: memory on the cache's device for `publish(staged=True)`, rounded down to whole
        blocks. `address`: a socket path or a name; None for KVMARKET_ADDRESS, or else the user's default market.
        `programs`: the most programs of a fetch's kernel that run at a time, and so the most SMs. By default a pull of
        more than 8 MiB runs as many as fill NVLink (12 to 20, see kernels/shape.py), a shorter one as many as fit.
        `checksums`: whether packed blocks get a checksum, which the engine that fetches them compares.

        Raises LayoutError, FingerprintError, AddressError, VersionError, NamespaceError, RefusedError, TransportError;
        each says what to do. MisuseError for a wrong type or value of another argument.
        """
        if not isinstance(cache, PagedCache):
            raise LayoutError(
                f"cache is a {type(cache).__name__}; wrap the tensors: PagedCache(layer_tensors, block_size=...)"
            )
        check_identity(fingerprint, tenant)
        check_count("staging_bytes", staging_bytes, 0)
        check_count("programs", programs, 1)
        check_size(cache.layout)
        cache.check_meaning()
        cache.check_described()
        self.cache = cache
        self._identity = fingerprint.hex, tenant
        self._checksums = checksums
        self._staging_lock = threading.Lock()
        self._membership = Membership(cache, fingerprint, tenant, staging_bytes, address, programs)
        self._control, self._data = self._membership.control, self._membership.data
        self._staging, self._pending = self._membership.staging, self._membership.pending
        self._landings = self._membership.landings
        self._addresses = cache.addresses()
        self._membership.leave_with(self)

    def publish(self, tokens: Integers, block_ids: Sequence[int], staged: bool = False) -> int:
        """Offer every whole block of `tokens`; block i lies in slot `block_ids[i]`.

        The blocks may still be written by work on the current CUDA stream: the offers become visible by themselves when
        that work has completed, and only for slots that are not retired by then. Returns how many blocks will be
        offered: every whole one, or with `staged=True` as many leading ones as the staging pool holds. Retire the slots
        before you overwrite them. With `staged=True` the blocks are packed into the staging pool on the current stream,
        and later work on that stream may overwrite the slots.

        Raises TokenError; LayoutError if a tensor's memory was replaced; SlotError for ids out of range, repeated, too
        few or too many (one for a last, partial block is allowed), and for slots that do not hold these blocks: offered
        or fetched for other tokens and not written since, still being fetched, or left empty by a fetch and not written
        since. On a GPU empty slots are found only when the stream gets there: then their blocks and the following ones
        are counted and not offered. MisuseError for `staged=True` without a staging pool. Costs one pass over the
        tokens and, staged, one copy of the blocks (a launch on CUDA).
        """
        self._membership.check()
        array, ids = as_tokens(tokens), self._control.checked(as_slots(block_ids))
        size = self.cache.block_size
        blocks = len(array) // size
        if len(ids) < blocks:
            raise SlotError(f"{len(ids)} block ids for {blocks} whole blocks; give one per {size} tokens")
        if len(ids) > -(-len(array) // size):
            raise SlotError(f"{len(ids)} block ids for {len(array)} tokens; give one per {size} tokens, and no more")
        check_tokens(len(array))
        self._check_placed()
        ids = ids[:blocks]
        array = array[: blocks * size].copy()  # offered later: the caller may reuse its array
        generations = self._control.generations(ids)
        self._data.check_landed(ids)
        empty = self._landings.check(ids, array)
        if empty is not None and self.cache.device.type == "cpu":
            for slot in ids[empty()]:
                raise SlotError(
                    f"block id {slot} holds no block: a fetch did not bring it (wait() said so), and nothing was "
                    "written since; prefill it before you publish it"
                )
            empty = None
        if not blocks:
            return 0
        if staged:
            return self._publish_staged(array, ids, generations, empty)
        self._control.check_news(array, ids, generations)
        control = self._control

        def offer() -> None:
            written = blocks if empty is None else _written(empty())
            control.offer(array[: written * size], ids[:written], generations[:written])

        self._when_complete(offer)
        return blocks

    def match(self, tokens: Integers) -> Hit:
        """Find the longest prefix of `tokens` that engines of this fingerprint and tenant offer.

        `hit.tokens` and `hit.blocks` say how long it is; zero is a valid answer. Every whole block found counts, the
        last one too (leave a token to compute, if your engine needs one). Answered from this process' own replica of
        the market, also while no service runs. Raises TokenError. Costs about 30 us for 8,192 tokens in an int32 array
        (a list is converted first, 10 ns a token), and at most 2 ms more if much has been offered since the last call.
        """
        self._membership.check()
        array = as_tokens(tokens)
        check_tokens(len(array))
        hit = self._control.match(array)
        return msgspec.structs.replace(hit, prefix=array[: hit.tokens].copy()) if hit.blocks else hit

    def fetch(self, hit: Hit, block_ids: Sequence[int], first: int = 0) -> Fetch:
        """Copy blocks `first` .. `first + len(block_ids)` of `hit` into these slots; returns a handle at once.

        `done()` of the handle polls, `wait()` returns how many leading blocks are valid. Prefill the other blocks.
        Retires the slots before it launches, and never offers them by itself: publish them when they hold their blocks.
        The copy runs on its own stream, after the work that is on the current stream now. Of two fetches into one slot
        the later one counts. Never raises because a peer changed its mind or died. Raises SlotError for ids out of
        range, repeated, more than the hit has, or being fetched by another market of this memory; MisuseError for a hit
        that was matched for another fingerprint or tenant; LayoutError if a tensor's memory was replaced. Costs about
        0.1 ms of the calling thread, more for a pool seen for the first time.
        """
        self._membership.check()
        if not isinstance(hit, Hit):
            raise MisuseError(f"hit is a {type(hit).__name__}; give what match() returned")
        if hit.blocks and (hit.fingerprint, hit.tenant) != self._identity:
            raise MisuseError("the hit was matched for another fingerprint or tenant; fetch it where it was matched")
        ids = as_slots(block_ids)
        self._data.check(hit, len(ids), first)
        ids = self._control.checked(ids)
        self._check_placed()
        purpose = Purpose(hit.prefix, hit.first + first, self.cache.block_size, self.cache.writes)

        def begin() -> Landing:
            return self._landings.begin(ids, purpose, self._data, lambda: self._control.retire_checked(ids))

        return self._data.start(hit, ids, first, begin)

    def retire(self, block_ids: Sequence[int]) -> None:
        """Take down the offers of these slots, before the slots are overwritten. They are dead when this returns.

        Raises SlotError.
        """
        self._membership.check()
        self._data.settle()  # so that finished fetches do not count as disturbed by this
        self._control.retire(block_ids)

    def close(self) -> None:
        """Leave the market: all offers of this engine are dead when this returns, and all mappings are dropped.

        Waits for the copies under way. Publications that were not visible yet are never offered. May be called twice.
        """
        self._membership.close()

    def __enter__(self) -> Market:
        """The market itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _publish_staged(
        self, tokens: Int32s, ids: Slots, generations: UInt64s, empty: Callable[[], Flags] | None
    ) -> int:
        """Pack the blocks into the staging pool, then offer them from there unless a slot was retired meanwhile."""
        if self._staging is None:
            raise MisuseError(
                "staged=True needs a staging pool; give connect(..., staging_bytes=...) at least one block"
            )
        with self._staging_lock:  # no other thread may take the same slots before their generations are read
            staged = self._staging.ring.take(len(ids))
            ids, generations = ids[: len(staged)], generations[: len(staged)]
            self._control.retire(staged, staged=True)
            expected = self._control.generations(staged, staged=True)
            packed = self._staging.pack(self._data.slots, ids, staged, summed=self._checksums)

        control, size = self._control, self.cache.block_size

        def offer() -> None:
            written = len(ids) if empty is None else min(len(ids), _written(empty()))
            live = control.still(ids[:written], generations[:written])
            if live < written:
                counters.add("offer_dropped", written - live, reason="a slot was retired before its block was packed")
            checksums = packed.checksums()
            control.offer(
                tokens[: live * size],
                staged[:live],
                expected[:live],
                staged=True,
                checksums=None if checksums is None else checksums[:live],
            )

        self._when_complete(offer)
        return len(staged)

    def _when_complete(self, offer: Any) -> None:
        """Call `offer` when the work that is now on the current stream has completed; on a CPU at once.

        `offer` must not refer to the market: a market without references is closed.
        """
        device = self.cache.device
        if device.type == "cpu":
            offer()
            return
        with torch.cuda.device(device):
            event = torch.cuda.Event()
            event.record()

        def ready() -> bool:
            with torch.cuda.device(device):  # else the query makes a context on the first GPU
                return bool(event.query())

        def commit() -> None:
            try:
                offer()
            except KVMarketError as error:
                counters.add("offer_dropped", reason=f"it was refused: {type(error).__name__}", detail=error)

        self._pending.add(ready, commit)

    def _check_placed(self) -> None:
        """Raise LayoutError if a tensor's memory was replaced: peers and fetches would still use the old memory."""
        if (now := self.cache.addresses()) != self._addresses:
            number = next(i for i, (was, is_now) in enumerate(zip(self._addresses, now, strict=True)) if was != is_now)
            raise LayoutError(
                f"tensor {number} of the cache has other memory than when the market was joined (its data was "
                "replaced); close this market, and connect with a PagedCache of the tensors as they are"
            )


def _written(empty: Flags) -> int:
    """Number of leading slots that hold a block; counts the dropped offers of the others."""
    written = leading(~empty)
    if written < len(empty):
        reason = "a fetch did not bring its block, and nothing was written since: prefill what wait() does not count"
        counters.add("offer_dropped", len(empty) - written, reason=reason)
    return written
