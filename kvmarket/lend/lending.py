"""What a lender does in one space: pull what engines offer while it is valid, and offer it again from segments."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby

import numpy as np
import torch

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.lend.growing import Growing
from kvmarket.lend.keeper import Keeper
from kvmarket.lend.keys import first_key, keys_of
from kvmarket.lend.parts import Part, Pull, checksums_of, runs_of
from kvmarket.lend.segment import Segment
from kvmarket.lend.tips import Tip, Tips
from kvmarket.market.member import MarketMember
from kvmarket.market.offer import Hit, descriptor_of
from kvmarket.market.own_pool import OwnPools
from kvmarket.pool import Slots, UInt64s
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Join
from kvmarket.registry.protocol.status import Label, SpaceDescribed
from kvmarket.support.flags import leading

MOST_PULLS = 8  # under way at a time
MOST_LATER = 256  # prefixes, each with its tokens, that wait for another lender
LATER_SECONDS = 0.5  # until this lender copies what is another one's to copy, and is not offered by it
AGAIN_SECONDS = 10.0  # until a block is offered again that so many offer that its own offer was dropped


class Lending:
    """A member of one space that keeps blocks of its engines. Not thread-safe."""

    def __init__(
        self, address: str | None, space: str, told: SpaceDescribed, nbytes: int, device: torch.device, *, far: bool
    ) -> None:
        """Join `space` at `address` with a first segment of `nbytes` on `device`.

        `told`: what the service says of the space. `far`: as of `Segment`. Raises as `MarketMember` and `Segment`.
        """
        self.space, self.device, self.far = space, device, far
        self.tips = Tips()
        self._stages = descriptor_of(told.description).stages
        self._growing = Growing()
        self._where: dict[bytes, tuple[Segment, int]] = {}  # kept block -> where it is, or is being copied to
        self._elsewhere: set[bytes] = set()  # kept blocks that another lender has: they take no memory here
        self._pulls: list[Pull] = []
        self._later: deque[tuple[float, Part]] = deque()
        self._offered_again: dict[bytes, float] = {}
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
        """Bytes of a budget that all segments take."""
        return sum(segment.nbytes for segment in self._segments)

    def __len__(self) -> int:
        """Number of blocks that are kept here, or being copied."""
        return len(self._where)

    def turn(self, more: Callable[[], bool]) -> bool:
        """Do some work, without waiting; return whether there is more to do soon.

        `more` is called when the memory is nearly full: it may add a segment, and returns whether it has.
        """
        for pull in [pull for pull in self._pulls if all(fetch.done() for fetch in pull.fetches)]:
            self._pulls = [each for each in self._pulls if each is not pull]
            self._conclude(pull)
        while self._later and self._later[0][0] <= time.monotonic():
            self._pull(self._later.popleft()[1])
        tips = self.tips.take(max(0, min(MOST_PULLS - len(self._pulls), MOST_LATER - len(self._later))))
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
        self._fit()

    def take_back(self, *, smallest: bool = False) -> int:
        """Give the newest segment up, or the `smallest`, with all its blocks, which are dead at once; return its bytes.

        Not the last one. Waits for copies into it.
        """
        segment = min(self._segments, key=lambda each: each.nbytes) if smallest else self._segments[-1]
        segment.pool.kill()
        self._segments = tuple(each for each in self._segments if each is not segment)
        for fetch in [fetch for pull in self._pulls if pull.segment is segment for fetch in pull.fetches]:
            fetch.wait()
        self._pulls = [pull for pull in self._pulls if pull.segment is not segment]
        self._member.drop_pool(segment.pool)
        keys = [key for key, (where, _) in self._where.items() if where is segment]
        counters.add("blocks_taken_back", len(keys))
        self._lose(keys)
        self._fit()
        segment.close()
        return segment.nbytes

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
            far=self.far,
        )

    def _forget(self, pools: Sequence[str]) -> None:
        for segment in self._segments:
            segment.forget(pools)

    def _look_at(self, tip: Tip, more: Callable[[], bool]) -> None:
        """Decide what to keep of the prefix that ends in a tip, and begin to copy it."""
        found = self._member.prefix_of(tip.pool, tip.block)
        if found is None:  # it was retired meanwhile
            return
        (tenant, tokens), size, known = found, self._member.block_size, self._growing.take(tip)
        done, after = (known.blocks, known.last) if known is not None else (0, None)
        keys = keys_of(tokens[done * size :], size, after or first_key(tenant))
        first = known.first if known is not None else keys[0]
        self._growing.note(tip, done + len(keys), first, keys[-1])
        new = sum(key not in self._keeper for key in keys)
        while len(self._keeper) + new > self._keeper.capacity and more():
            pass
        self._give_up(self._keeper.used(keys, after).drop)
        part = Part(tenant, tokens, done, keys)
        if self._member.is_mine(first, far=self.far):
            self._pull(part)
        else:
            self._later.append((time.monotonic() + LATER_SECONDS, part))
        if known is None:
            self._offer_again(part)

    def _pull(self, part: Part) -> None:
        """Begin to copy those blocks of a part that are to be kept and are not here."""
        wanted = runs_of([key in self._keeper and key not in self._where for key in part.keys])
        for start, end in wanted:
            if part.keys[end - 1] not in self._keeper:  # given up for the run before
                break
            tokens = part.tokens[: (part.first + end) * self._member.block_size]
            self._pull_all(Part(part.tenant, tokens, part.first + start, part.keys[start:end], part.again))

    def _pull_all(self, part: Part) -> None:
        """Begin to copy the blocks of a part, as many as are on offer and find a slot.

        Blocks that another lender offers, of memory as far as ours, are kept by that one alone.
        """
        hit, done = self._member.match(part.tokens, tenant=part.tenant, first=part.first), 0
        flags = self._member.lent_elsewhere(part.tokens, hit, far=self.far)
        for elsewhere, run in groupby(flags.tolist()):
            end = done + len(list(run))
            if elsewhere:
                self._elsewhere.update(part.keys[done:end])
                done = end
            while done < end and (copied := self._copy(part, hit, done, end)):
                done += copied
            if done < end:
                break
        self._lose(part.keys[done:])
        self._fit()

    def _copy(self, part: Part, hit: Hit, start: int, end: int) -> int:
        """Begin to copy blocks `start` .. `end` of a hit into one segment; return how many. 0 if none has a slot."""
        for segment in self._segments:
            slots = segment.take(end - start)
            if not len(slots):
                continue
            try:
                fetches = segment.fetch(hit, slots, start)
            except KVMarketError as error:  # of another geometry, say
                segment.free(slots.tolist())
                counters.add("lend_failed", reason=type(error).__name__, detail=error)
                return 0
            end, size = start + len(slots), self._member.block_size
            keys, tokens = part.keys[start:end], part.tokens[: (part.first + end) * size]
            copied = Part(part.tenant, tokens, part.first + start, keys, part.again)
            self._pulls.append(Pull(copied, segment, slots, checksums_of(hit, start, len(slots)), fetches))
            self._where.update((key, (segment, slot)) for key, slot in zip(keys, slots.tolist(), strict=True))
            self._elsewhere.difference_update(keys)
            self._keeper.pinned.update(keys)
            return len(slots)
        return 0

    def _conclude(self, pull: Pull) -> None:
        """Offer the blocks of a completed copy that came; try once more to have the others, which another may offer."""
        part = pull.part
        self._keeper.pinned.difference_update(part.keys)
        came = leading(np.logical_and.reduce([fetch.valid for fetch in pull.fetches]))
        if came:
            self._offer(pull.segment, part, 0, pull.slots[:came], pull.checksums)
            counters.add("blocks_lent", came)
        rest = part._replace(first=part.first + came, keys=part.keys[came:], again=True)
        pull.segment.free(pull.slots[came:].tolist())
        self._lose(rest.keys, for_good=part.again)
        if rest.keys and not part.again:
            self._later.append((time.monotonic() + LATER_SECONDS, rest))

    def _offer(self, segment: Segment, part: Part, start: int, slots: Slots, checksums: UInt64s | None) -> None:
        """Offer blocks `start` ... of a part, which lie in these slots."""
        first = part.first + start
        self._member.offer_from(
            segment.pool,
            part.tokens[: (first + len(slots)) * self._member.block_size],
            slots,
            segment.pool.generations.read(slots),
            tenant=part.tenant,
            first=first,
            checksums=None if checksums is None else checksums[: len(slots)],
        )

    def _offer_again(self, part: Part) -> None:
        """Offer kept blocks again that so many engines offer that the service has dropped this lender's offer."""
        now = time.monotonic()
        crowded = self._member.crowded(part.tokens, part.tenant)
        due = [
            full and key in self._where and key not in self._keeper.pinned and now >= self._offered_again.get(key, 0.0)
            for key, full in zip(part.keys, crowded.tolist(), strict=False)
        ]
        for start, end in runs_of(due):
            for at in range(start, end):
                segment, slot = self._where[part.keys[at]]
                slots = np.array([slot])
                sums = segment.pool.ledger.checksums(slots)
                self._member.take_down_from(segment.pool, slots)
                self._offer(segment, part, at, slots, sums if sums.any() else None)
                self._offered_again[part.keys[at]] = now + AGAIN_SECONDS
        if len(self._offered_again) > len(self._where):
            self._offered_again = {key: until for key, until in self._offered_again.items() if until > now}

    def _lose(self, keys: Sequence[bytes], *, for_good: bool = True) -> None:
        """Note that these blocks of one prefix are not here, and could not be had."""
        for key in keys:
            self._where.pop(key, None)
        self._elsewhere.difference_update(keys)
        self._keeper.pinned.difference_update(keys)
        if for_good:
            self._keeper.lost(keys)

    def _fit(self) -> None:
        """Have the keeper keep as many blocks as fit here, and those that other lenders have besides."""
        slots = sum(segment.slots for segment in self._segments)
        room = slots + min(len(self._elsewhere), slots)
        if room != self._keeper.capacity:
            self._give_up(self._keeper.resize(room))

    def _give_up(self, keys: Iterable[bytes]) -> None:
        """Take the offers of these blocks down, and free their slots."""
        gone: defaultdict[Segment, list[int]] = defaultdict(list)
        for key in keys:
            self._elsewhere.discard(key)
            place = self._where.pop(key, None)
            if place is not None:
                gone[place[0]].append(place[1])
        for segment, slots in gone.items():
            self._member.retire_from(segment.pool, np.array(slots))
            segment.free(slots)
            counters.add("blocks_given_up", len(slots))
