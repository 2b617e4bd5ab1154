"""How fast this engine computes prompts, in tokens a second, measured on the steps that it dispatches and gets back.

Only the time during which a step computes counts: from its dispatch, or from the return of the step ahead of it where
steps overlap, to its own return. An idle engine keeps the rate that it had when it last computed.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping

DEFAULT = 10_000.0  # tokens a second, of an engine that has not measured its own
STEP_TOKENS = 256  # of one request: a step with fewer decodes, or is mostly overhead, and says nothing
KEPT = 15  # steps whose median is the rate: those seen late, and the first ones, which compile, do not count
ENOUGH = 3  # steps until which the default holds


class PrefillRate:
    """The rate of one engine. All on the scheduling thread; some us a step."""

    def __init__(self) -> None:
        self._flying: deque[tuple[int, int, float]] = deque()  # step, its tokens, when it was dispatched
        self._free = 0.0  # when the last step came back: the device had nothing older to compute from then on
        self._seen: deque[float] = deque(maxlen=KEPT)
        self._rate = DEFAULT

    def seconds(self, tokens: int) -> float:
        """How long this engine takes to compute so many tokens of prompts."""
        return tokens / self._rate

    def dispatched(self, step: int, scheduled: Mapping[str, int]) -> None:
        """A step with these tokens, by request, is about to be dispatched."""
        if scheduled and max(scheduled.values()) >= STEP_TOKENS:
            self._flying.append((step, sum(scheduled.values()), time.monotonic()))

    def returned(self, step: int) -> None:
        """This step is back, and with it all that were dispatched before it."""
        now, free = time.monotonic(), self._free
        self._free = now
        while self._flying and self._flying[0][0] <= step:
            number, tokens, begun = self._flying.popleft()
            if number == step and now > (start := max(begun, free)):
                self._measured(tokens / (now - start))

    def _measured(self, rate: float) -> None:
        self._seen.append(rate)
        if len(self._seen) >= ENOUGH:
            self._rate = statistics.median(self._seen)
