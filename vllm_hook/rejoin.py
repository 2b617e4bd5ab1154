"""An engine whose weights change leaves the market, and joins it again as another one, on a thread of its own."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from kvmarket import counters
from kvmarket.control import ControlHalf
from vllm_hook.guard import Guard
from vllm_hook.metadata import RankMemory
from vllm_hook.weights import CacheWeights, Names, have_names

RETRY_SECONDS = 10.0  # a market that could not be joined is asked again


class Rejoin:
    """Which weights the market knows one engine by, and its way back in. Called from the scheduling thread alone.

    It is out between `leave` and the `take` that returns something, which is after its prefix cache was emptied and a
    step has shown which weights compute now.
    """

    def __init__(self, ranks: Sequence[RankMemory], connect: Callable[[Sequence[RankMemory]], ControlHalf]) -> None:
        self.weights: Names = ()
        self._ranks = ranks
        self._connect = connect
        self._cached = CacheWeights()
        self._out = False
        self._lock = threading.Lock()
        self._asked: Names | None = None  # being joined, or joined, with these weights
        self._pause = 0.0  # not before
        self._control: ControlHalf | None = None
        self._left: tuple[str, ...] = ()

    def told(self) -> tuple[tuple[str, ...], Names]:
        """For the workers: pools of a market that was left since the last call, to be forgotten, and the weights."""
        left, self._left = self._left, ()
        return left, self.weights

    def emptied(self, step: int) -> None:
        """The engine's prefix cache was emptied; the next step to be dispatched is `step`."""
        self._cached.emptied(step)

    def changed(self, step: int, weights: Names) -> bool:
        """Whether this step, which is back, computed with weights other than those that the market knows."""
        self._cached.computed(step, weights)
        if self._out and self._cached.only(self.weights):
            self._ask(self.weights)
        return weights != self.weights

    def leave(self, control: ControlHalf | None, step: int, weights: Names) -> None:
        """Let go of `control`, whose offers are dead: the weights are these now, as of this step."""
        self.close()
        if not self._out:
            counters.add("vllm_left_market", reason="weights changed; back when the prefix cache has been reset")
        self._out, self.weights = True, weights
        if control is not None:
            self._left += (*control.met(), *control.take_gone())
            threading.Thread(target=control.close, name="kvmarket-leave", daemon=True).start()
        if have_names(weights):
            self.changed(step, weights)
        else:
            counters.add("vllm_hook_off", reason="weights changed, and this build does not show what they are")

    def take(self) -> ControlHalf | None:
        """The new control half, once it is there."""
        with self._lock:
            control, self._control = self._control, None
        if control is not None:
            self._out = False
            counters.add("vllm_joined_again", reason="weights changed, and the prefix cache has been reset")
        return control

    def close(self) -> None:
        """Join no more; a control half that nobody has taken is closed."""
        with self._lock:
            self._asked = None
            control, self._control = self._control, None
        if control is not None:
            control.close()

    def _ask(self, weights: Names) -> None:
        """Join with these weights, unless that is under way or nobody else can have them."""
        with self._lock:
            if self._asked == weights or not have_names(weights) or time.monotonic() < self._pause:
                return
            self._asked = weights
        threading.Thread(target=self._join, args=(weights,), name="kvmarket-rejoin", daemon=True).start()

    def _join(self, weights: Names) -> None:
        """Make the control half; runs on a thread of its own."""
        with Guard("rejoin", lambda _: self._failed(weights)):
            control = self._connect([dataclasses.replace(rank, weights=weights) for rank in self._ranks])
            with self._lock:
                wanted = self._asked == weights
                if wanted:
                    self._control = control
            if not wanted:
                control.close()

    def _failed(self, weights: Names) -> None:
        """The market could not be joined with these weights: a later step asks again."""
        with self._lock:
            self._pause = time.monotonic() + RETRY_SECONDS
            if self._asked == weights:
                self._asked = None
