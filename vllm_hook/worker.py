"""The worker side of one rank: shares the engine's pages, and fetches peers' blocks into them. No tokens here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kvmarket import counters
from kvmarket.data import DataHalf
from kvmarket.moved import Moved
from vllm_hook import compat, facts
from vllm_hook.metadata import Load, RankMemory, StepMetadata
from vllm_hook.pages import Pages


class WorkerSide:
    """One rank's reader. A load always ends: its request is finished then, and the pages it could not fill are bad."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, refusal: str = "", programs: int | None = None) -> None:
        self._programs = programs
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._refusal = refusal
        self._pages: Pages | None = None
        self._data: DataHalf | None = None
        self._unstarted: list[Load] = []
        self._moving: list[tuple[Load, Moved]] = []
        self._unreachable: list[str] = []
        self._finished: set[str] = set()
        self._bad: set[int] = set()
        self._seconds: list[float] = []

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Share the engine's pages: CPU tensors move into shared memory in place, CUDA memory is exported once."""
        if next(iter(kv_caches.values())).device.type == "cpu":
            compat.prepare_cpu_worker()
        if self._refusal:
            return
        self._pages = Pages(kv_caches, self._kv_cache_config)
        self._data = self.make_data_half(self._pages)

    def make_data_half(self, pages: Pages) -> DataHalf:
        """The data half of the market over these pages."""
        rank = facts.rank_of(self._vllm_config)
        return DataHalf(pages.cache, rank, on_unreachable=self._unreachable.append, programs=self._programs)

    def refuse(self, reason: str) -> None:
        """Take no part, for this reason."""
        self._refusal = self._refusal or reason
        self._data = None

    def handshake(self) -> RankMemory:
        """What the scheduler must know of this rank, or why it takes no part."""
        if self._data is None or self._pages is None:
            return RankMemory(None, None, refusal=self._refusal or "the worker has no KV cache")
        known = facts.of_worker(self._vllm_config, self._pages)
        return RankMemory(self._data.memory, self._pages.cache.layout, known, ways=self._data.mover.describe())

    def start(self, step: StepMetadata) -> None:
        """Start the step's loads; returns at once."""
        self._unstarted.extend(step.loads)  # first: whatever raises, they will be ended
        if step.gone and self._data is not None:
            self._data.forget(step.gone)
        while self._unstarted:
            load = self._unstarted[0]
            if load.hit is None or self._data is None:
                reason = "offers were taken down before the load" if load.hit is None else "the worker takes no part"
                self._end(self._unstarted.pop(0), 0, reason)
            else:
                moved = self._data.fetch(load.hit, load.slots)
                self._moving.append((self._unstarted.pop(0), moved))

    def poll(self) -> None:
        """Look which loads have ended; waits for none."""
        moving, self._moving = self._moving, []
        try:
            while moving:
                load, moved = moving[-1]
                if moved.done():
                    self._end(load, moved.wait())
                    if moved.seconds:
                        self._seconds.append(moved.seconds)
                else:
                    self._moving.append((load, moved))
                moving.pop()
        finally:
            self._moving.extend(moving)

    def failed(self, reason: str) -> None:
        """Something raised while loads were started: those that were not are computed instead."""
        while self._unstarted:
            self._end(self._unstarted.pop(), 0, "the load could not be started")

    def take_finished(self) -> set[str]:
        """The requests whose load has ended since the last call."""
        finished, self._finished = self._finished, set()
        return finished

    def take_unreachable(self) -> tuple[str, ...]:
        """The pools that could not be mapped, since the last call."""
        unreachable = tuple(self._unreachable)
        self._unreachable.clear()
        return unreachable

    def take_bad(self) -> set[int]:
        """The pages that loads could not fill, since the last call."""
        bad, self._bad = self._bad, set()
        return bad

    def take_seconds(self) -> list[float]:
        """How long each fetch took that ended since the last call."""
        seconds, self._seconds = self._seconds, []
        return seconds

    def close(self) -> None:
        """Let go of peers' memory and of our own."""
        if self._data is not None:
            self._data.close()
            self._data = None

    def _end(self, load: Load, good: int, reason: str = "a peer's blocks were gone, or could not be read") -> None:
        """A load is over: all pages beyond the first `good` ones are bad, for this reason."""
        self._bad.update(load.slots[good:])
        self._finished.add(load.request_id)
        if good < len(load.slots):
            counters.add("vllm_blocks_lost", len(load.slots) - good, reason=reason)
