"""An engine's membership in the market: it joins, late if need be, and leaves and rejoins when its weights change."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from kvmarket import counters
from kvmarket.market.control import ControlHalf
from vllm_hook.guard import Guard, nothing_to_close
from vllm_hook.metadata import RankMemory
from vllm_hook.scheduler.joining import Joining
from vllm_hook.worker.weights import CacheWeights, Names, have_names

START_SECONDS = 10.0  # how long an engine's start waits for the market; it may still join later
RETRY_SECONDS = 10.0  # from a failed attempt to join to the next one
NO_THREAD = "no thread can be started; raise the limit of processes (ulimit -u, or that of the container)"

Connect = Callable[[Sequence[RankMemory]], ControlHalf]


class Rejoin:
    """Joins and leaves the market for one engine; `weights` are those in its fingerprint. Scheduling thread only.

    The engine is in the market from `take`, which hands the control half over, until `leave`. It rejoins after its
    prefix cache was emptied and a step has shown which weights compute now.
    """

    def __init__(
        self,
        ranks: Sequence[RankMemory],
        connect: Connect,
        joined: Callable[[ControlHalf], None] = lambda control: None,
        failed: Callable[[str], None] = nothing_to_close,
    ) -> None:
        """`connect` makes the control half for the memory of all ranks; see `Joining` for `joined` and `failed`.

        All three are called on the joining thread; `failed` also on the scheduling thread, if the first attempt is
        late or no thread can be started.
        """
        self.weights: Names = ()
        self._ranks = ranks
        self._connect = connect
        self._joined, self._failed = joined, failed
        self._cached = CacheWeights()
        self._out = True
        self._has_left = False
        self._closed = False
        self._joining: Joining | None = None
        self._pause = 0.0  # time.monotonic() before which no attempt is made
        self._left: tuple[str, ...] = ()

    def begin(self) -> None:
        """Start joining, and wait for the first attempt to end: `START_SECONDS` at most."""
        self._ask()
        if self._joining is not None and not self._joining.wait(START_SECONDS):
            self._failed(f"it has not let this engine in for {START_SECONDS:.0f} s")

    def told(self) -> tuple[tuple[str, ...], Names]:
        """For the workers: pools to forget, of a market that was left since the last call; and the engine's weights."""
        left, self._left = self._left, ()
        return left, self.weights

    def emptied(self, step: int) -> None:
        """Note that the engine's prefix cache was emptied; `step` is the next step to be dispatched."""
        self._cached.emptied(step)

    def changed(self, step: int, weights: Names) -> bool:
        """Whether this returned step computed with other weights than `weights`; also starts to rejoin if it can."""
        self._cached.computed(step, weights)
        if self._out and self._cached.only(self.weights):
            self._ask()
        return weights != self.weights

    def leave(self, control: ControlHalf | None, step: int, weights: Names) -> None:
        """Leave the market: close `control`, whose offers are dead. This step has shown the new `weights`."""
        if control is not None:
            self._left += (*control.met(), *control.take_gone())
        for each in (self._stop(), control):
            if each is not None:
                _close(each)
        if not self._out:
            counters.add("vllm_left_market", reason="weights changed; back when the prefix cache has been reset")
            self._has_left = True
        elif not self._has_left:
            counters.add("vllm_join_put_off", reason="weights changed; it joins when the prefix cache has been reset")
        self._out, self.weights = True, weights
        if have_names(weights):
            self.changed(step, weights)
        else:
            counters.add("vllm_hook_off", reason="weights changed, and this build does not show what they are")

    def take(self) -> ControlHalf | None:
        """The new control half, once, which the caller then owns; else None. Costs less than 1 us."""
        control = self._joining.take() if self._joining is not None else None
        if control is not None:
            self._joining, self._out = None, False
            if self._has_left:
                counters.add("vllm_joined_again", reason="weights changed, and the prefix cache has been reset")
        return control

    def close(self) -> None:
        """Stop joining for good; close a control half that was made and not taken."""
        self._closed = True
        control = self._stop()
        if control is not None:
            control.close()

    def _stop(self) -> ControlHalf | None:
        """Stop the joining thread, if any; returns the control half that it has made, if any."""
        joining, self._joining = self._joining, None
        return joining.stop() if joining is not None else None

    def _ask(self) -> None:
        """Start joining with the current weights, unless a thread already does, or no other engine can have them."""
        if self._joining or self._closed or not have_names(self.weights) or time.monotonic() < self._pause:
            return
        ranks = [dataclasses.replace(rank, weights=self.weights) for rank in self._ranks]
        try:
            self._joining = Joining(lambda: self._connect(ranks), RETRY_SECONDS, self._joined, self._failed)
        except RuntimeError:  # a later step asks again
            self._pause = time.monotonic() + RETRY_SECONDS
            counters.add("vllm_join_failed", reason=NO_THREAD)
            self._failed(NO_THREAD)


def _close(control: ControlHalf) -> None:
    """Close `control` on a thread of its own; on the calling thread where none can be started."""

    def close() -> None:
        with Guard("leave", nothing_to_close):
            control.close()

    try:
        threading.Thread(target=close, name="kvmarket-leave", daemon=True).start()
    except RuntimeError:
        counters.add("vllm_left_slowly", reason=NO_THREAD)
        close()
