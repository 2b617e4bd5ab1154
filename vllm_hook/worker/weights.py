"""Which weights a rank computes with, and whether all blocks of the engine's prefix cache were computed with them.

The worker names its weights in every step's output. So blocks of a step that computed with changed weights are never
offered under the old name, whatever changed the weights.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from vllm_hook.guard import Guard
from vllm_hook.identity.naming import UNKNOWN, name_as_loaded
from vllm_hook.identity.tensors import checksum_of
from vllm_hook.worker.changes import follow_loads

Names: TypeAlias = tuple[tuple[int, str], ...]  # (rank, name) of ranks whose weights have changed
_NO_NAME = "?"


class RankWeights:
    """Names the weights of one rank: `name` is empty while they equal those loaded at the start, else a checksum.

    Equal names mean equal bytes. Where the weights cannot be read, every change gives a unique name. `loaded` names the
    weights of the start, from the moment when the worker is ready.
    """

    def __init__(self, checksum: Callable[[torch.nn.Module], str] | None = None) -> None:
        self._checksum = checksum or checksum_of
        self._start: str | None = None
        self._worker: Any = None  # the worker, while its weights may differ from `_name`
        self._name = ""
        self.loaded = UNKNOWN

    def ready(self, worker: Any) -> None:
        """The worker has loaded its model: name its weights, and follow later loads into it.

        A second call, when a worker warms up again, keeps the name of the start.
        """
        with Guard("ready", self._unknown):
            follow_loads(worker.get_model(), self, worker)
        with Guard("ready", lambda _: None):
            if not (self.loaded.name or self.loaded.reason):
                self.loaded = name_as_loaded(worker.get_model(), worker)

    def changing(self, worker: Any) -> None:
        """Note that the weights of vLLM's worker may change; call it before they do.

        The first call reads all weights, to know those of the start, and waits for that.
        """
        with Guard("changing", self._unknown):
            if self._start is None:
                self._start = self._checksum(worker.get_model())
            self._worker = worker

    def name(self) -> str:
        """The current name; call it before each step. Reads all weights if they may have changed since the last."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            with Guard("name", self._unknown):
                now = self._checksum(worker.get_model())
                if now and now == self._start:
                    self._name = ""
                elif now:
                    self._name = now
                else:
                    self._unknown("hidden")
        return self._name

    def _unknown(self, _: str) -> None:
        """Take a unique name: it equals no other engine's, now or later."""
        self._start = self._start or ""
        self._name = f"{_NO_NAME}{uuid.uuid4().hex}"


def have_names(weights: Names) -> bool:
    """Whether other engines can have these weights: none of them has a unique name."""
    return not any(name.startswith(_NO_NAME) for _, name in weights)


class CacheWeights:
    """With which weights the blocks in the engine's prefix cache were computed; the scheduler tells it each step."""

    def __init__(self) -> None:
        self._first = 1  # the first step whose blocks the cache may hold
        self._seen: set[Names] = set()

    def emptied(self, step: int) -> None:
        """Note that the cache was emptied; `step` is the next step to be dispatched."""
        self._first = step
        self._seen.clear()

    def computed(self, step: int, weights: Names) -> None:
        """Note that this step is back and computed with these weights."""
        if step >= self._first:
            self._seen.add(weights)

    def only(self, weights: Names) -> bool:
        """Whether all steps since the cache was emptied, at least one, computed with these weights."""
        return self._seen == {weights}


def names_of(rank: int, name: str) -> Names:
    """One rank's weights as `Names`; empty while `name` is."""
    return ((rank, name),) if name else ()


def name_for(rank: int, weights: Names) -> str:
    """The name of one rank's weights in `weights`; empty if the rank is not in it."""
    return dict(weights).get(rank, "")
