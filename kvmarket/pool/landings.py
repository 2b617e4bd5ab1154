"""Landings: for each slot of a cache, the last fetch into it and whether that fetch brought its block.

`publish` asks here, so that a slot is offered only as the block that it holds. It is refused while a fetch into the
slot is under way, if the fetch did not bring the block, and for other tokens than those of the fetched block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmarket import counters
from kvmarket.errors import SlotError
from kvmarket.layout.paged import SlotArray
from kvmarket.pool.generations import Generations
from kvmarket.pool.marks import Marks
from kvmarket.pool.slots import Slots, UInt64s
from kvmarket.support.flags import Flags, leading
from kvmarket.support.sets import common, distinct

Int32s = npt.NDArray[np.int32]
FEW = 1024  # purposes that are kept before the unused ones are dropped

# States of a slot.
_NOTHING = 0  # no fetch into it, or its content is unknown
_UNDER_WAY = 1
_BROUGHT = 2  # the fetch brought its block, which is there unless the slot's generation has changed
_EMPTY = 3  # the fetch did not bring its block: the slot has a mark unless it was written since
_UPSET = 4  # retired during the fetch, or its mark could not be written: it may hold anything until retired once more


class Purpose(NamedTuple):
    """The blocks that a fetch is to bring: blocks `first`, ... of the prefix `tokens`, of `block_size` tokens each.

    `tokens` is None if unknown. `writes` returns the number of writes into the cache, or None if they are not counted.
    """

    tokens: Int32s | None
    first: int
    block_size: int
    writes: Callable[[], int | None]


class _Brought(NamedTuple):
    purpose: Purpose
    writes: int | None  # number of writes when the fetch ended


class Landing:
    """The destinations of one fetch, from its launch on."""

    def __init__(self, table: Landings, number: int, slots: Slots, generations: UInt64s, purpose: Purpose) -> None:
        """`generations`: of `slots`, right after they were retired for the fetch."""
        self._table = table
        self.number, self.slots, self.generations, self.purpose = number, slots, generations, purpose

    def intact(self) -> Flags:
        """For each slot, whether it has not been retired since this fetch began. Another fetch into it retires it too.

        Costs a few us.
        """
        same: Flags = self._table.generations.read(self.slots) == self.generations
        return same

    def end(self, brought: Flags) -> None:
        """Note that the fetch is over; `brought` says for each slot whether its block came. Marks the other slots.

        Call it once, when no byte of the fetch can be written any more, and before the result is reported.
        """
        self._table.end(self, brought)


class Landings:
    """The last fetch into each slot of one cache, and its outcome. Thread-safe."""

    def __init__(self, array: SlotArray, generations: Generations) -> None:
        """Start without fetches. Costs 21 bytes a slot."""
        self.generations = generations
        self._marks = Marks(array)
        self._lock = threading.RLock()
        self._number = 0
        self._lanes: dict[int, object] = {}  # lanes of the fetches under way, by their numbers
        self._brought: dict[int, _Brought] = {}
        self._most = FEW
        self._state = np.zeros(generations.slots, np.uint8)
        self._of = np.zeros(generations.slots, np.int64)  # the number of the last fetch into the slot
        self._since = np.zeros(generations.slots, np.uint64)  # the slot's generation at that fetch
        self._place = np.zeros(generations.slots, np.int32)  # the index of the fetched block in its prefix

    def begin(self, slots: Slots, purpose: Purpose, lane: object, retire: Callable[[], None]) -> Landing:
        """Call `retire` for these slots and note that a fetch into them begins.

        Fetches with the same `lane` (a mover) write in the order in which they begin. Raises SlotError, and retires
        nothing, if a fetch of another lane into one of the slots is under way. Costs a few us.
        """
        with self._lock:
            if self._lanes:
                self._check_lane(slots, lane)
            retire()
            self._number += 1
            self._lanes[self._number] = lane
            self._state[slots] = _UNDER_WAY
            self._of[slots] = self._number
            return Landing(self, self._number, slots, self.generations.read(slots), purpose)

    def _check_lane(self, slots: Slots, lane: object) -> None:
        busy = slots[self._state[slots] == _UNDER_WAY]
        for slot, number in zip(busy.tolist(), self._of[busy].tolist(), strict=True):
            if self._lanes[number] is not lane:
                raise SlotError(
                    f"block id {slot} is still being fetched by another market of this memory; call wait() on that "
                    "fetch first"
                )

    def end(self, landing: Landing, brought: Flags) -> None:
        """See `Landing.end`."""
        with self._lock:
            del self._lanes[landing.number]
            came, since, first = landing.slots, landing.generations, landing.purpose.first
            place = np.arange(first, first + len(came))
            fine = brought & landing.intact() & (self._of[came] == landing.number)
            if leading(fine) < len(fine):
                self._note_lost(landing, brought)
                came, since, place = came[fine], since[fine], place[fine]
            self._state[came] = _BROUGHT
            self._since[came] = since
            self._place[came] = place
            if len(came) and landing.purpose.tokens is not None:
                self._brought[landing.number] = _Brought(landing.purpose, landing.purpose.writes())
                if len(self._brought) > self._most:
                    self._forget()

    def _note_lost(self, landing: Landing, brought: Flags) -> None:
        """Note slots whose block did not come, or that were retired meanwhile. Leaves slots of a later fetch alone."""
        ours = landing.slots[self._of[landing.slots] == landing.number]
        intact = landing.slots[landing.intact()]
        self._since[ours] = self.generations.read(ours)
        self._state[ours] = _UPSET
        empty = common(ours, common(intact, landing.slots[~brought]))
        self._state[empty] = self._mark(empty)

    def _mark(self, slots: Slots) -> int:
        """Mark these slots; return the state that they have then."""
        try:
            return _EMPTY if self._marks.put(slots) else _NOTHING
        except RuntimeError as error:  # of the device
            counters.add("mark_failed", reason=type(error).__name__, detail=error)
            return _UPSET

    def check(self, slots: Slots, tokens: Int32s) -> Callable[[], Flags] | None:
        """Raise SlotError if a slot is known not to hold its block: slot i must hold block i of the prefix `tokens`.

        If some slots may still have a mark, returns a function. Call it once the current stream has done all work
        launched before this call; it says for each slot whether it holds no block. Else returns None. Costs a few us,
        and a comparison of tokens where slots hold fetched blocks.
        """
        with self._lock:
            states = self._state[slots]
            if not states.any():
                return None
            self._refuse(slots[states == _UNDER_WAY], "is still being fetched; call wait() on that fetch before")
            as_then = self._since[slots] == self.generations.read(slots)
            self._refuse(
                slots[as_then & (states == _UPSET)],
                "may not hold what was written to it, for it was retired while it was being fetched, or that fetch "
                "failed; call wait() on the fetch, retire the slot and write it before",
            )
            fetched = np.flatnonzero(as_then & (states == _BROUGHT))
            for number in distinct(self._of[slots[fetched]]).tolist():
                self._check_tokens(number, slots, fetched[self._of[slots[fetched]] == number], tokens)
            doubtful = slots[states == _EMPTY]
            return self._look(slots, doubtful) if len(doubtful) else None

    def _refuse(self, slots: Slots, why: str) -> None:
        for slot in slots:
            raise SlotError(f"block id {slot} {why} you publish it")

    def _check_tokens(self, number: int, slots: Slots, at: Slots, tokens: Int32s) -> None:
        """Raise SlotError if fetch `number` brought other blocks into ``slots[at]`` than blocks `at` of `tokens`.

        Does not raise where the cache may have been written since.
        """
        brought = self._brought.get(number)
        if brought is None or brought.purpose.tokens is None:
            return
        known, size = brought.purpose.tokens, brought.purpose.block_size
        common = min(len(known), len(tokens))
        equal = known[:common] == tokens[:common]
        same = common if equal.all() else int(np.argmin(equal))
        wrong = at[(self._place[slots[at]] != at) | ((at + 1) * size > same)]
        if len(wrong) and brought.writes is not None and brought.purpose.writes() == brought.writes:
            slot = slots[wrong[0]]
            raise SlotError(
                f"block id {slot} holds a block that was fetched for other tokens, and nothing was written since; "
                f"publish it with those, or retire([{slot}]) and write it first"
            )

    def _look(self, slots: Slots, doubtful: Slots) -> Callable[[], Flags]:
        """Start to look whether the slots `doubtful`, which a fetch left empty, have been written since."""
        look = self._marks.look(doubtful)

        def empty() -> Flags:
            marked = look()
            with self._lock:
                written = doubtful[~marked]
                self._state[written[self._state[written] == _EMPTY]] = _NOTHING
            return np.isin(slots, doubtful[marked])

        return empty

    def _forget(self) -> None:
        """Drop the purposes of fetches of which no slot holds a block any more."""
        live = set(distinct(self._of[self._state == _BROUGHT]).tolist())
        self._brought = {number: each for number, each in self._brought.items() if number in live}
        self._most = max(FEW, 2 * len(self._brought))
