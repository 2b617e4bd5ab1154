"""Steps in flight: which blocks each dispatched step completes, kept until the output of that step is back.

vLLM advances its counters and hashes blocks when a step is *scheduled*; with asynchronous scheduling several steps are
in flight. A block may be offered only when the output of the step that wrote it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from kvmarket.pool import UInt64s
from vllm_hook.scheduler.requests import RequestState


@dataclass(slots=True)
class Written:
    """Whole blocks `first`, ... of a request that one step completes, with their slots and generations at dispatch."""

    state: RequestState
    first: int
    slots: list[int]
    generations: UInt64s


class Steps:
    """A queue of numbered steps, oldest first. Numbers start at 1 and never come again."""

    def __init__(self) -> None:
        self._next = 1
        self._computing = 0  # the last dispatched step that has tokens
        self._rested = False  # whether the device has had nothing to compute
        self._woke = 0  # the last step that the idle device began with
        self._back = 0  # the last step that is back
        self._queue: deque[tuple[int, list[Written]]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def computing(self) -> bool:
        """Whether a step with tokens is in flight: the device computes."""
        return self._computing > self._back

    @property
    def waking(self) -> bool:
        """Whether the idle device has just begun to compute, so that a user waits for a first token.

        True until that first step is back, and for two more dispatched steps at most.
        """
        return self._back < self._woke and self._next <= self._woke + 2

    @property
    def next(self) -> int:
        """The number of the next step."""
        return self._next

    def dispatch(self, written: list[Written], tokens: bool = True) -> int:
        """Number the step that is about to be dispatched and keep its blocks; `tokens`: whether it computes any."""
        number = self._next
        self._next += 1
        if tokens:
            if self._rested and not self.computing:
                self._woke = number
            self._computing = number
        self._rested = not tokens
        if written:
            self._queue.append((number, written))
        return number

    def rest(self) -> None:
        """Note that the device is idle: the next step with tokens counts as `waking`."""
        self._rested = True

    def through(self, number: int) -> Iterator[Written]:
        """Remove and return the blocks of all steps up to `number`: outputs come back in the order of dispatch."""
        self._back = max(self._back, number)
        while self._queue and self._queue[0][0] <= number:
            yield from self._queue.popleft()[1]

    def discard(self, bad: set[int]) -> None:
        """Forget blocks of requests that have a page in `bad`: it failed to load, and they were computed from it."""
        for _, written in self._queue:
            written[:] = [one for one in written if bad.isdisjoint(one.state.slots)]

    def clear(self) -> None:
        """Forget all steps in flight: none of their blocks will be offered."""
        self._queue.clear()
