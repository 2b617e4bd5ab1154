"""How fast the engine computes: whether importing a few tokens brings a request its first token sooner than computing.

A load costs a busy engine no time of the device, but its request some steps: it starts with one, is seen to have ended
when that step's output is back, and the request is scheduled at the next one. Computing the tokens takes the device
some time and the request no step more. So a short import pays where the engine is idle, where it makes room in an
engine that is full of prompts, and where so few tokens take longer than those steps.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from kvmarket import counters

LOAD_STEPS = 3.0  # that a load delays its request by, with asynchronous scheduling (measured: bench/serving.py)
MANY = 1024  # tokens of a step from which on its time says what a token costs
FULL = 0.75  # of the steps' time goes to computing prompts: then whatever is imported makes room for others
WEIGHT = 0.2  # of the latest step in the means
IDLE_SECONDS = 1e-3  # after the last output, with no step in flight


class _Step(NamedTuple):
    number: int
    tokens: int
    at: float


class Pace:
    """Means over the last steps with tokens; everything pays until one of `MANY` tokens has been seen."""

    def __init__(self, import_all: bool) -> None:
        self.import_all = import_all
        self._flying: deque[_Step] = deque()
        self._last = 0.0  # when the last step with tokens came back
        self._seconds = 0.0  # of a step
        self._tokens = 0.0  # of a step
        self._token_seconds = 0.0  # of a token among many; 0: not known

    def dispatched(self, number: int, tokens: int) -> None:
        """A step goes to the device, with so many tokens."""
        if tokens:
            self._flying.append(_Step(number, tokens, time.perf_counter()))

    def returned(self, number: int) -> None:
        """The outputs of all steps up to this one are back."""
        now = time.perf_counter()
        while self._flying and self._flying[0].number <= number:
            step = self._flying.popleft()
            seconds = now - max(self._last, step.at)
            self._last = now
            self._seconds += WEIGHT * (seconds - self._seconds)
            self._tokens += WEIGHT * (step.tokens - self._tokens)
            if step.tokens >= MANY:
                known = self._token_seconds or seconds / step.tokens
                self._token_seconds = known + WEIGHT * (seconds / step.tokens - known)

    def pays(self, tokens: int) -> bool:
        """Whether a request that comes now should import so many tokens; counted if not."""
        computing = self._token_seconds * tokens
        busy = self._flying or time.perf_counter() - self._last < IDLE_SECONDS
        full = self._token_seconds * self._tokens > FULL * self._seconds
        if self.import_all or not busy or not computing or full or computing > LOAD_STEPS * self._seconds:
            return True
        counters.add("vllm_import_refused", reason="a busy engine computes so few tokens sooner")
        return False
