"""The worker side of one rank: shares the rank's pages, and fetches peers' blocks into them. It sees no tokens.

KVMarketConnector calls it on the thread that runs the worker's steps. After an exception it calls `refuse`, or, for an
exception of `start` and `poll`, `failed`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from kvmarket import counters
from kvmarket.market.data import DataHalf
from kvmarket.market.fetch import Fetch
from vllm_hook.engine import compat, facts, limits
from vllm_hook.guard import Guard
from vllm_hook.metadata import Load, RankMemory, StepDone, StepMetadata
from vllm_hook.worker import changes
from vllm_hook.worker.pages import Pages
from vllm_hook.worker.weights import RankWeights, name_for, names_of

GONE = "a peer's blocks were gone, or could not be read"
OTHER_WEIGHTS = "the weights were changed before the blocks were there"

LOOKOUT_SECONDS = 0.002  # vLLM's engine core sleeps for 1 ms between steps when it has only loads in flight
LOOK_SECONDS = 50e-6  # between two looks
LENT_SECONDS = 0.02  # between two looks whether a lender wants memory back: an idle worker is told nothing
SLOWER = 1.05  # the kept pace rises by this factor at most with a slower load, which was seen late or shared the link


class WorkerSide:
    """Runs the loads of one rank. Every load ends: then its request is finished, and pages it did not fill are bad."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, refusal: str = "", programs: int | None = None) -> None:
        self._programs = programs
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._refusal = refusal
        self._pages: Pages | None = None
        self._data: DataHalf | None = None
        self._rank = 0
        self._weights = self.make_weights()
        self._computing_with = ""  # the name of the weights of the current step
        self._unstarted: list[Load] = []
        self._ahead: dict[str, Fetch] = {}  # loads started before their step, by request
        self._moving: list[tuple[Load, Fetch, str]] = []  # loads in flight, each with the weights of its blocks
        self._unreachable: list[str] = []
        self._finished: dict[str, bool] = {}  # requests whose load has ended: whether it filled all pages
        self._told: dict[str, bool] = {}  # those that `take_finished` returned last
        self._bad: set[int] = set()
        self._seconds: list[float] = []
        self._pace = 0.0  # seconds a page, of the fastest recent load
        self._in_lockstep = False  # whether other engines' steps wait for ours (data parallelism)
        self.alone = False  # whether the engine has no other connector; the connector sets it

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Share the rank's pages: CPU tensors are moved into shared memory in place, CUDA memory is exported once."""
        if any(cache.device.type == "cpu" for cache in kv_caches.values()):
            compat.prepare_cpu_worker()
        if self._refusal:
            return
        self._pages = Pages(kv_caches, self._kv_cache_config)
        self._data = self.make_data_half(self._pages)
        self._in_lockstep = self._vllm_config.parallel_config.data_parallel_size > 1
        changes.watch(self._vllm_config.parallel_config, self._weights)

    def make_data_half(self, pages: Pages) -> DataHalf:
        """Make the market's data half over these pages."""
        self._rank = facts.rank_of()
        hear = self._unreachable.append
        return DataHalf(
            pages.cache, self._rank, on_unreachable=hear, programs=self._programs, look_seconds=LENT_SECONDS
        )

    def make_weights(self) -> RankWeights:
        """Make the object that names this rank's weights."""
        return RankWeights()

    def refuse(self, reason: str) -> None:
        """Take no part in the market, for this reason; the first reason is kept."""
        self._refusal = self._refusal or reason
        self._data = None

    def handshake(self) -> RankMemory:
        """This rank's memory and facts for the scheduler, or the reason why it takes no part."""
        if self._data is not None and (reason := limits.refusal_by_weights(self._vllm_config, self._weights.loaded)):
            self.refuse(reason)
        if self._data is None or self._pages is None:
            return RankMemory(None, None, refusal=self._refusal or "the worker has no KV cache")
        known = facts.of_worker(self._vllm_config, self._pages)
        return RankMemory(
            self._data.memory,
            self._pages.cache.layout,
            known,
            stage=facts.stage_of(),
            ways=self._data.mover.describe(),
            loaded=self._weights.loaded,
            here=weakref.ref(self) if self.alone else None,
        )

    def start_now(self, load: Load) -> None:
        """Start a load before the step that brings it; call it on the thread that runs the steps.

        Call it only if `alone`: another connector might read the pages' old content when that step begins. If it
        raises, the step starts the load.
        """
        if self._data is not None and load.hit is not None:
            with Guard("start_now", lambda _: None):  # the step starts the load
                self._ahead[load.request_id] = self._data.fetch(load.hit, load.slots)

    def begin(self) -> None:
        """A step begins: note the weights with which it computes."""
        self._computing_with = self._weights.name()

    def done(self, step: StepMetadata) -> StepDone:
        """The `StepDone` of a step that has been launched; takes the pools found unreachable."""
        weights = names_of(self._rank, self._computing_with)
        return StepDone(step.step, unreachable=self.take_unreachable(), weights=weights)

    def start(self, step: StepMetadata) -> None:
        """Start the step's loads, and forget pools that are gone; does not wait for the loads."""
        self._unstarted.extend(step.loads)  # first, so that `failed` ends them after an exception
        if (step.gone or step.far) and self._data is not None:
            self._data.forget(step.gone)
            self._data.map_ahead(step.far)
        weights = name_for(self._rank, step.weights)
        while self._unstarted:
            load = self._unstarted[0]
            ahead = self._ahead.pop(load.request_id, None)
            if ahead is not None:  # it runs already; others may write its pages only after it has ended
                self._moving.append((self._unstarted.pop(0), ahead, weights))
            elif load.hit is None or self._data is None:
                reason = "offers were taken down before the load" if load.hit is None else "the worker takes no part"
                self._end(self._unstarted.pop(0), 0, reason)
            elif weights != self._computing_with:
                self._end(self._unstarted.pop(0), 0, OTHER_WEIGHTS)
            else:
                moved = self._data.fetch(load.hit, load.slots)
                self._moving.append((self._unstarted.pop(0), moved, weights))

    def poll(self, step: StepMetadata | None = None) -> None:
        """End the loads that have ended. In an idle step, wait a moment for one to end.

        The engine core sleeps 1 ms or more between empty steps and would see the end of a load late. So an empty step
        waits for it: for `LOOKOUT_SECONDS`, or, where a load is expected to end within twice that, until that long
        after the expected end. A step that brought loads waits only for those that are expected to be short.
        """
        self._look()
        if not (step and step.idle and self._moving) or self._finished or self._in_lockstep:
            return
        soon = self._soon()
        if step.loads and not (self._pace and soon <= LOOKOUT_SECONDS):
            return
        end = time.perf_counter() + LOOKOUT_SECONDS + (soon if soon <= 2 * LOOKOUT_SECONDS else 0)
        while self._moving and not self._finished and time.perf_counter() < end:
            time.sleep(LOOK_SECONDS)
            self._look()

    def _soon(self) -> float:
        """Seconds until the first load in flight is expected to end, at the pace of the fastest recent load."""
        ends = (moved.begun + self._pace * len(load.slots) for load, moved, _ in self._moving)
        return max(0.0, min(ends) - time.perf_counter())

    def _look(self) -> None:
        """End the loads that have ended. A load whose check raises is checked last from then on, so the others end."""
        moving, self._moving = self._moving, []
        try:
            while moving:
                load, moved, weights = moving[-1]
                if not moved.done():
                    self._moving.append(moving.pop())
                    continue
                good, stale = moved.wait(), weights != self._computing_with
                moving.pop()  # before `_end`: a load must not end twice
                self._end(load, 0 if stale else good, OTHER_WEIGHTS if stale else GONE)
                if moved.seconds and not stale:
                    self._seconds.append(moved.seconds)
                    if good == len(load.slots):
                        pace = moved.seconds / good
                        self._pace = min(pace, SLOWER * self._pace or pace)
        finally:
            self._moving = [*moving[-1:], *self._moving, *moving[:-1]]

    def failed(self, reason: str) -> None:
        """An exception was raised while loads were started: end those not started; vLLM computes their blocks."""
        while self._unstarted:
            load = self._unstarted.pop()
            if ahead := self._ahead.pop(load.request_id, None):
                ahead.wait()  # a late copy must not overwrite computed blocks
            self._end(load, 0, "the load could not be started")

    def take_finished(self) -> set[str]:
        """The requests whose load has ended, successful or not, since the last call."""
        self._told, self._finished = self._finished, {}
        return set(self._told)

    def landed(self) -> set[str]:
        """Requests whose load filled all pages, in the last step or since. Call it on the thread of the steps."""
        self.begin()  # the weights may have changed since that step
        self._look()
        return {request_id for request_id, whole in (self._told | self._finished).items() if whole}

    def take_unreachable(self) -> tuple[str, ...]:
        """The pools that could not be mapped since the last call."""
        unreachable = tuple(self._unreachable)
        self._unreachable.clear()
        return unreachable

    def take_bad(self) -> set[int]:
        """The pages that loads could not fill since the last call."""
        bad, self._bad = self._bad, set()
        return bad

    def take_seconds(self) -> list[float]:
        """The seconds of each fetch that has ended since the last call."""
        seconds, self._seconds = self._seconds, []
        return seconds

    def close(self) -> None:
        """Unmap peers' memory and stop sharing our own."""
        if self._data is not None:
            self._data.close()
            self._data = None

    def _end(self, load: Load, good: int, reason: str = GONE) -> None:
        """End a load: all its pages after the first `good` are bad, and counted as lost for this reason."""
        self._bad.update(load.slots[good:].tolist())
        self._finished[load.request_id] = good == len(load.slots)
        if good < len(load.slots):
            counters.add("vllm_blocks_lost", len(load.slots) - good, reason=reason)
