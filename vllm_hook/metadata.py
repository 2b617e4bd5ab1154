"""What travels between the scheduler side and the worker side of one engine, through vLLM's own channels.

Plain classes: connector.py registers them with vLLM's abstract ones, so that the two sides can be used without vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmarket.layout import Layout
from kvmarket.offer import Hit
from kvmarket.transport import Memory


@dataclass(frozen=True)
class Load:
    """Blocks to fetch for one request: block i of the hit into slots[i]. Without a hit the load fails at once."""

    request_id: str
    hit: Hit | None
    slots: tuple[int, ...]


@dataclass(frozen=True)
class StepMetadata:
    """Scheduler to every worker, once per step, the empty ones too: its number, loads to start, pools that are gone."""

    step: int
    loads: tuple[Load, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """Workers to scheduler, with a step's output: which step it is, how many ranks say so, pools none can map."""

    step: int
    ranks: int = 1
    unreachable: tuple[str, ...] = ()

    def aggregate(self, other: StepDone) -> StepDone:
        """Both ranks have come at least as far as the smaller number."""
        unreachable = self.unreachable + other.unreachable
        return StepDone(min(self.step, other.step), self.ranks + other.ranks, unreachable)


@dataclass(frozen=True)
class RankMemory:
    """A worker to its scheduler, once at start-up: its memory and what only it knows, or why it takes no part.

    `ways`: how it fetches, in words for the log.
    """

    memory: Memory | None
    layout: Layout | None
    facts: tuple[tuple[str, str], ...] = ()
    refusal: str = ""
    ways: str = ""
