"""What a lender does in one space: pull what engines offer while it is valid, and offer it again from segments."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.lend.keeper import Keeper
from kvmarket.lend.keys import first_key, keys_of
from kvmarket.lend.segment import Segment
from kvmarket.lend.tips import Tip, Tips
from kvmarket.market.fetch import Fetch
from kvmarket.market.member import MarketMember
from kvmarket.market.offer import Hit, PoolDescriptor
from kvmarket.market.own_pool import OwnPools
from kvmarket.pool import Slots, UInt64s
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Before, Join
from kvmarket.registry.protocol.status import Label, SpaceDescribed
from kvmarket.registry.trie.tokens import Int32s
from kvmarket.support.flags import leading
from kvmarket.transport import decode_memory

MOST_PULLS = 8  # under way at a time
GROWING_SECONDS = 30.0  # offers that go on so soon are of the same request; later ones are of another
MOST_GROWING = 1 << 14  # requests that are remembered for that
_decoder = msgspec.msgpack.Decoder(PoolDescriptor, dec_hook=decode_memory)


def descriptor_of(told: SpaceDescribed) -> PoolDescriptor:
    """The pool of an engine of the space. Raises LayoutError, or what msgspec raises."""
    return _decoder.decode(told.description)


class _Growing(NamedTuple):
    """A request so far: when its last block was seen, the number of its blocks, and the key of the last one."""

    time: float
    blocks: int
    key: bytes


class _Pull(NamedTuple):
    """A copy under way of blocks `first` ... of the prefix `tokens` into slots of a segment, by each rank."""

    tenant: str
    tokens: Int32s
    first: int
    keys: Sequence[bytes]
    segment: Segment
    slots: Slots
    checksums: UInt64s | None
    fetches: Sequence[Fetch]


class Lending:
    """A member of one space that keeps blocks of its engines. Not thread-safe."""

    def __init__(
        self, address: str | None, space: str, told: SpaceDescribed, nbytes: int, device: torch.device
    ) -> None:
        """Join `space` at `address` with a first segment of `nbytes` on `device`.

        `told`: what the service says of the space. Raises what `MarketMember` and `Segment` raise.
        """
        self.space, self.device = space, device
        self.tips = Tips()
        self._stages = descriptor_of(told).stages
        self._growing: OrderedDict[tuple[str, Before], _Growing] = OrderedDict()
        self._where: dict[bytes, tuple[Segment, int]] = {}  # kept block -> where it is, or is being copied to
        self._pulls: list[_Pull] = []
        segment = self._new_segment(nbytes)
        self._segments: tuple[Segment, ...] = (segment,)  # replaced, never changed: the watching thread reads it
        self._keeper: Keeper[bytes] = Keeper(segment.slots)
        fingerprint = space.partition("/")[0]
        mine = segment.pool.record()
        label = Label(told.label.model)  # without the port of that engine
        join = Join(Process.current(), space, told.geometry, told.block_size, (mine,), told.facts, label)
        with ExitStack() as undo:
            undo.callback(segment.close)
            own = OwnPools([segment.pool])
            self._member = MarketMember(own, join, fingerprint, "", address, self._forget, False, self.tips.note)
            undo.pop_all()

    @property
    def segments(self) -> int:
        """Number of segments, at least one."""
        return len(self._segments)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.nbytes for segment in self._segments)

    def __len__(self) -> int:
        """Number of blocks that are kept, or being copied."""
        return len(self._where)

    def turn(self, more: Callable[[], bool]) -> bool:
        """Do some work, without waiting; return whether there is more to do soon.

        `more` is called when the memory is nearly full: it may add a segment, and returns whether it has.
        """
        self._pulls = [pull for pull in self._pulls if not self._concluded(pull)]
        tips = self.tips.take(max(0, MOST_PULLS - len(self._pulls)))
        for tip in tips:
            self._look_at(tip, more)
        return bool(tips or self._pulls)

    def add_segment(self, nbytes: int) -> None:
        """Add a segment of `nbytes`. Raises what `Segment` raises, and ClosedError."""
        segment = self._new_segment(nbytes)
        with ExitStack() as undo:
            undo.callback(segment.close)
            undo.callback(segment.pool.close)
            self._member.add_pool(segment.pool)
            undo.pop_all()
        self._segments = (*self._segments, segment)
        self._keeper.resize(self._keeper.capacity + segment.slots)

    def take_back(self) -> int:
        """Give the newest segment up, with all its blocks, which are dead at once; return its bytes. Not the last one.

        Waits for copies into it.
        """
        *rest, segment = self._segments
        segment.pool.kill()
        self._segments = tuple(rest)
        for fetch in [fetch for pull in self._pulls if pull.segment is segment for fetch in pull.fetches]:
            fetch.wait()
        self._pulls = [pull for pull in self._pulls if pull.segment is not segment]
        self._member.drop_pool(segment.pool)
        keys = [key for key, (where, _) in self._where.items() if where is segment]
        for key in keys:
            del self._where[key]
        self._keeper.pinned.difference_update(keys)
        self._keeper.lost(keys)
        counters.add("blocks_taken_back", len(keys))
        self._give_up(self._keeper.resize(self._keeper.capacity - segment.slots))
        nbytes = segment.nbytes
        segment.close()
        return nbytes

    def kill(self) -> None:
        """Make all offers dead, at once; they are taken down by `take_back` or `close`, one of which must follow."""
        for segment in self._segments:
            segment.pool.kill()

    def close(self) -> None:
        """Leave the market, and free the memory: all offers are dead at once."""
        self._member.close()
        for segment in self._segments:
            segment.close()
        self._pulls.clear()

    def _new_segment(self, nbytes: int) -> Segment:
        return Segment(
            self._stages,
            nbytes,
            self.device,
            lambda pool: self._member.avoid(pool),
            lambda pool: self._member.avoid(pool, for_now=True),
        )

    def _forget(self, pools: Sequence[str]) -> None:
        for segment in self._segments:
            segment.forget(pools)

    def _look_at(self, tip: Tip, more: Callable[[], bool]) -> None:
        """Decide what to keep of the prefix that ends in a tip, and begin to copy it."""
        found = self._member.prefix_of(tip.pool, tip.block)
        if found is None:  # it was retired meanwhile
            return
        (tenant, tokens), size = found, self._member.block_size
        known = self._grown_from(tip)
        done, after = (known.blocks, known.key) if known is not None else (0, None)
        keys = keys_of(tokens[done * size :], size, after or first_key(tenant))
        self._growing[tip.pool, tip.block] = _Growing(time.monotonic(), done + len(keys), keys[-1])
        if len(self._growing) > MOST_GROWING:
            self._growing.popitem(last=False)
        if len(self._keeper) + len(keys) > self._keeper.capacity:
            more()
        self._give_up(self._keeper.used(keys, after).drop)
        for start, end in _runs([key in self._keeper and key not in self._where for key in keys]):
            self._pull(tenant, tokens[: (done + end) * size], done + start, keys[start:end])

    def _grown_from(self, tip: Tip) -> _Growing | None:
        """The request that a tip goes on with; None if it is another one."""
        known = self._growing.pop((tip.pool, tip.before), None) if tip.before is not None else None
        return known if known is not None and time.monotonic() - known.time < GROWING_SECONDS else None

    def _pull(self, tenant: str, tokens: Int32s, first: int, keys: Sequence[bytes]) -> None:
        """Begin to copy blocks `first` ... of the prefix `tokens`, as many as engines offer and find a slot.

        Blocks that another lender has already are not copied: they are kept once.
        """
        hit = self._member.match(tokens, tenant=tenant, first=first)
        blocks, size, done = hit.computed, self._member.block_size, 0
        for segment in self._segments:
            while done < blocks and len(slots := segment.take(blocks - done)):
                end = done + len(slots)
                try:
                    fetches = segment.fetch(hit, slots, done)
                except KVMarketError as error:  # of another geometry, say
                    segment.free(slots.tolist())
                    counters.add("lend_failed", reason=type(error).__name__, detail=error)
                    blocks = done
                    break
                prefix = tokens[: (first + end) * size]
                sums = _checksums(hit, done, len(slots))
                self._pulls.append(_Pull(tenant, prefix, first + done, keys[done:end], segment, slots, sums, fetches))
                self._where.update(
                    (key, (segment, slot)) for key, slot in zip(keys[done:], slots.tolist(), strict=False)
                )
                self._keeper.pinned.update(keys[done:end])
                done = end
        self._keeper.lost(keys[done:])

    def _concluded(self, pull: _Pull) -> bool:
        """If a copy has completed, offer the blocks that came; return whether it has."""
        if not all(fetch.done() for fetch in pull.fetches):
            return False
        self._keeper.pinned.difference_update(pull.keys)
        came = leading(np.logical_and.reduce([fetch.valid for fetch in pull.fetches]))
        size, pool = self._member.block_size, pull.segment.pool
        if came:
            self._member.offer_from(
                pool,
                pull.tokens[: (pull.first + came) * size],
                pull.slots[:came],
                pool.generations.read(pull.slots[:came]),
                tenant=pull.tenant,
                first=pull.first,
                checksums=None if pull.checksums is None else pull.checksums[:came],
            )
            counters.add("blocks_lent", came)
        for key in pull.keys[came:]:
            del self._where[key]
        self._keeper.lost(pull.keys[came:])
        pull.segment.free(pull.slots[came:].tolist())
        return True

    def _give_up(self, keys: Iterable[bytes]) -> None:
        """Take the offers of these blocks down, and free their slots."""
        gone: defaultdict[Segment, list[int]] = defaultdict(list)
        for key in keys:
            place = self._where.pop(key, None)
            if place is not None:
                gone[place[0]].append(place[1])
        for segment, slots in gone.items():
            self._member.retire_from(segment.pool, np.array(slots))
            segment.free(slots)
            counters.add("blocks_given_up", len(slots))


def _runs(flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The ranges of consecutive true flags."""
    edges = np.flatnonzero(np.diff(np.array([False, *flags, False])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _checksums(hit: Hit, start: int, count: int) -> UInt64s | None:
    """The checksums that are known of blocks of a hit, zero for others; None if none is known."""
    runs = hit.part(start, count)
    if all(run.checksums is None for run in runs):
        return None
    return np.concatenate([np.zeros(len(run), np.uint64) if run.checksums is None else run.checksums for run in runs])
