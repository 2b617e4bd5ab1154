"""The messages between the scheduler side and the worker side of one engine; vLLM carries them.

They are plain classes, so that both sides work without vLLM; connector.py registers them with vLLM's abstract classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvmarket.layout.layout import Layout
from kvmarket.market.offer import Hit, PoolDescriptor
from kvmarket.pool import Slots
from kvmarket.transport import Memory
from vllm_hook.identity.naming import UNKNOWN, Weights
from vllm_hook.worker.weights import Names


@dataclass(frozen=True, eq=False)
class Load:
    """Blocks to fetch for one request: block i of `hit` into `slots[i]`. A load whose hit is None fails at once."""

    request_id: str
    hit: Hit | None
    slots: Slots


@dataclass(frozen=True)
class StepMetadata:
    """From the scheduler to every worker, once per step, empty steps included.

    `step` is the step's number, `loads` the loads to start, `gone` the pools whose mappings to drop, `far` the pools to
    map ahead. `weights` names
    the weights with which the loads' blocks were computed. `idle`: neither this step nor one in flight has tokens, so
    a worker that waits for the end of a load delays nothing.
    """

    step: int
    loads: tuple[Load, ...] = ()
    gone: tuple[str, ...] = ()
    weights: Names = ()
    idle: bool = False
    far: tuple[PoolDescriptor, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """From the workers to the scheduler, with a step's output.

    `step` is the step's number, `ranks` how many ranks are aggregated here, `unreachable` the pools that some rank
    could not map, `weights` the weights with which the step computed.
    """

    step: int
    ranks: int = 1
    unreachable: tuple[str, ...] = ()
    weights: Names = ()

    def aggregate(self, other: StepDone) -> StepDone:
        """Merge two ranks: `step` is the smaller number, the step that both have done."""
        unreachable = self.unreachable + other.unreachable
        weights = tuple(sorted(self.weights + other.weights))
        return StepDone(min(self.step, other.step), self.ranks + other.ranks, unreachable, weights)


@dataclass(frozen=True)
class RankMemory:
    """From a worker to its scheduler, once at start-up: its memory and facts, or the `refusal` why it takes no part.

    `facts` are what only the worker knows of its KV cache. `loaded` names the weights that the worker started with;
    `weights` those that replaced them in the whole engine (the scheduler fills it in). `stage` is the pipeline stage,
    `ways` tells for the log how the worker fetches. `here` returns the worker side while that exists, for a scheduler
    on the same thread, which may call it; it becomes None when this is pickled for another process.
    """

    memory: Memory | None
    layout: Layout | None
    facts: tuple[tuple[str, str], ...] = ()
    refusal: str = ""
    weights: Names = ()
    stage: int = 0
    ways: str = ""
    loaded: Weights = UNKNOWN
    here: Callable[[], Any] | None = field(default=None, compare=False)

    def worker(self) -> Any | None:
        """The worker side; None where it no longer exists, or where the scheduler must not call it."""
        return self.here() if self.here is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "here": None}
