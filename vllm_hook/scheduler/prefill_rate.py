"""How fast this engine computes prompts, in tokens a second, measured on its own steps.

A step's time runs from its dispatch, or where steps overlap from the return of the step before it, to its own return.
Idle time does not count: an idle engine keeps its last rate.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping

DEFAULT = 10_000.0  # tokens a second, until the engine has measured its own rate
STEP_TOKENS = 256  # of one request; a step in which each has fewer is not measured: it is mostly decoding or overhead
KEPT = 15  # steps; the rate is their median, so that slow outliers (late returns, compilation) do not matter
ENOUGH = 3  # measured steps that replace the default rate


class PrefillRate:
    """The prefill rate of one engine. Call it on the scheduling thread only; costs some us a step."""

    def __init__(self) -> None:
        self._in_flight: deque[tuple[int, int, float]] = deque()  # steps in flight: number, tokens, time of dispatch
        self._free = 0.0  # when the last step returned: the device is free for the next one since then
        self._seen: deque[float] = deque(maxlen=KEPT)
        self._rate = DEFAULT

    def seconds(self, tokens: int) -> float:
        """Seconds that this engine takes to prefill so many tokens."""
        return tokens / self._rate

    def dispatched(self, step: int, scheduled: Mapping[str, int]) -> None:
        """A step is about to be dispatched; `scheduled` are its tokens by request."""
        if scheduled and max(scheduled.values()) >= STEP_TOKENS:
            self._in_flight.append((step, sum(scheduled.values()), time.monotonic()))

    def returned(self, step: int) -> None:
        """This step, and all steps dispatched before it, have returned: measure this one."""
        now, free = time.monotonic(), self._free
        self._free = now
        while self._in_flight and self._in_flight[0][0] <= step:
            number, tokens, begun = self._in_flight.popleft()
            if number == step and now > (start := max(begun, free)):
                self._measured(tokens / (now - start))

    def _measured(self, rate: float) -> None:
        self._seen.append(rate)
        if len(self._seen) >= ENOUGH:
            self._rate = statistics.median(self._seen)
