"""Which weights a rank computes with, and whether its engine's prefix cache holds blocks of one kind of weights only.

The worker names its weights in every step's output. So a step that computed with other weights offers nothing under
the old name, however the weights were changed, and whoever knew of it.
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

Names: TypeAlias = tuple[tuple[int, str], ...]  # rank and name of its weights, by rank; without ranks as they started
_NO_NAME = "?"


class RankWeights:
    """The weights of one rank: `name` is empty while they are those of the start, else it says what they hold.

    Equal names mean equal bytes. Where they cannot be read, every change gives a name that nobody else ever has.
    `loaded` says what those of the start are, once the worker is ready.
    """

    def __init__(self, checksum: Callable[[torch.nn.Module], str] | None = None) -> None:
        self._checksum = checksum or checksum_of
        self._start: str | None = None
        self._worker: Any = None  # whose weights may have changed since they were read
        self._name = ""
        self.loaded = UNKNOWN

    def ready(self, worker: Any) -> None:
        """The worker has its model: name what it has loaded, and hear of weights that are loaded into it from now on.

        Called once more, when a worker warms up again, it leaves the name of the start alone.
        """
        with Guard("ready", self._unknown):
            follow_loads(worker.get_model(), self, worker)
        with Guard("ready", lambda _: None):
            if not (self.loaded.name or self.loaded.reason):
                self.loaded = name_as_loaded(worker.get_model(), worker)

    def changing(self, worker: Any) -> None:
        """To be called before anything that may change the weights of vLLM's worker.

        Reads all of them the first time, to know what they were at the start, and waits for that.
        """
        with Guard("changing", self._unknown):
            if self._start is None:
                self._start = self._checksum(worker.get_model())
            self._worker = worker

    def name(self) -> str:
        """The name as of now: to be asked before each step. Reads the weights where they may have changed."""
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
        """Take a name that nobody has, and nobody will."""
        self._start = self._start or ""
        self._name = f"{_NO_NAME}{uuid.uuid4().hex}"


def have_names(weights: Names) -> bool:
    """Whether other engines can have weights of these names."""
    return not any(name.startswith(_NO_NAME) for _, name in weights)


class CacheWeights:
    """Of which weights the blocks in the engine's own prefix cache are: fed by the scheduler, step by step."""

    def __init__(self) -> None:
        self._first = 1  # the first step whose blocks the cache may hold
        self._seen: set[Names] = set()

    def emptied(self, step: int) -> None:
        """The cache was emptied; the next step to be dispatched is `step`."""
        self._first = step
        self._seen.clear()

    def computed(self, step: int, weights: Names) -> None:
        """A step has come back that computed with these weights."""
        if step >= self._first:
            self._seen.add(weights)

    def only(self, weights: Names) -> bool:
        """Whether all that the cache may hold was computed with these weights, and a step has shown it."""
        return self._seen == {weights}


def names_of(rank: int, name: str) -> Names:
    """What one rank says of its weights."""
    return ((rank, name),) if name else ()


def name_for(rank: int, weights: Names) -> str:
    """What the engine's scheduler believes of one rank's weights."""
    return dict(weights).get(rank, "")
