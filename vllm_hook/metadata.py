"""What travels between the scheduler side and the worker side of one engine, through vLLM's own channels.

Plain classes: connector.py registers them with vLLM's abstract ones, so that the two sides can be used without vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvmarket.layout.layout import Layout
from kvmarket.market.offer import Hit
from kvmarket.pool import Slots
from kvmarket.transport import Memory
from vllm_hook.identity.naming import UNKNOWN, Weights
from vllm_hook.worker.weights import Names


@dataclass(frozen=True, eq=False)
class Load:
    """Blocks to fetch for one request: block i of the hit into slots[i]. Without a hit the load fails at once."""

    request_id: str
    hit: Hit | None
    slots: Slots


@dataclass(frozen=True)
class StepMetadata:
    """Scheduler to every worker, once per step, the empty ones too: its number, loads to start, pools that are gone.

    `weights` are those that the loads' blocks were computed with. `idle`: no tokens are scheduled, in this step or one
    in flight, so nothing is held up by a worker that looks out for the end of a load.
    """

    step: int
    loads: tuple[Load, ...] = ()
    gone: tuple[str, ...] = ()
    weights: Names = ()
    idle: bool = False


@dataclass(frozen=True)
class StepDone:
    """Workers to scheduler, with a step's output: which step it is, how many ranks say so, pools none can map.

    `weights` are those that the step computed with.
    """

    step: int
    ranks: int = 1
    unreachable: tuple[str, ...] = ()
    weights: Names = ()

    def aggregate(self, other: StepDone) -> StepDone:
        """Both ranks have come at least as far as the smaller number."""
        unreachable = self.unreachable + other.unreachable
        weights = tuple(sorted(self.weights + other.weights))
        return StepDone(min(self.step, other.step), self.ranks + other.ranks, unreachable, weights)


@dataclass(frozen=True)
class RankMemory:
    """A worker to its scheduler, once at start-up: its memory and what only it knows, or why it takes no part.

    `loaded` are the weights that it started with, `weights` those that the whole engine has instead by now (filled in
    by its scheduler). `stage` is its pipeline stage, `ways` how it fetches, in words for the log. `here` gives the
    worker side itself, while it lives, to a scheduler that may call it because it runs on the same thread: it stays
    behind when this goes to another process.
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
        """The worker side, if it lives and the scheduler may call it."""
        return self.here() if self.here is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "here": None}
