"""Imports on the scheduler side: hits that were found, loads that are planned, and loads in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmarket import counters
from kvmarket.market.offer import Hit
from kvmarket.pool import Slots, UInt64s
from vllm_hook.metadata import Load
from vllm_hook.scheduler.requests import RequestState

if TYPE_CHECKING:
    from vllm_hook.worker.side import WorkerSide


@dataclass(slots=True)
class Flight:
    """A load in flight: destination `slots`, their `generations`, and `bad`: pages that some rank could not fill."""

    state: RequestState
    first: int
    slots: Slots
    generations: UInt64s
    bad: set[int] = field(default_factory=set)

    def land(self) -> int:
        """The load has ended: keep only the leading blocks that every rank has; returns how many."""
        if self.bad:
            good = next((i for i, slot in enumerate(self.slots.tolist()) if slot in self.bad), len(self.slots))
            self.slots, self.generations = self.slots[:good], self.generations[:good]
        return len(self.slots)


class Imports:
    """By request: its hit until it has pages, its load until that is sent, its flight until the load has ended."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._found: dict[str, Hit] = {}
        self._unsent: list[Load] = []
        self._flights: dict[str, Flight] = {}
        self._reported_early: set[str] = set()  # requests reported to vLLM before their worker's output does
        self._uncounted = 0  # imported tokens that no counter has yet
        self.worker: WorkerSide | None = None  # set where one thread runs both sides

    @property
    def planned(self) -> bool:
        """Whether planned loads wait for the next step's metadata."""
        return bool(self._unsent)

    def may_ask(self, state: RequestState, computed: int) -> bool:
        """Whether to ask the market about a request with `computed` local tokens; counts the reason if not allowed."""
        if state.imported:
            return False
        reason = state.refusal or ("local hit ends within a block" if computed % self._block_size else "")
        if self.is_due(state.request.request_id):
            reason = "an older request of that name is not over"
        if reason:
            state.refused(reason)
        return not reason

    def found(self, request_id: str, hit: Hit | None) -> None:
        """Remember the hit of a request's last match; None: the request imports nothing."""
        if hit is None:
            self._found.pop(request_id, None)
        else:
            self._found[request_id] = hit

    def plan(self, request_id: str, slots: Slots, tokens: int) -> Load:
        """Plan a load of `tokens` tokens into `slots`, all pages of the request.

        Destinations start at the hit's first block; without a hit they are the last pages, and the load will fail.
        """
        counters.add("vllm_tokens_asked", tokens)
        hit, blocks = self._found.pop(request_id, None), tokens // self._block_size
        first = hit.first if hit else len(slots) - blocks
        load = Load(request_id, hit, slots[first : first + blocks])
        self._unsent.append(load)
        return load

    def put_in_flight(
        self, load: Load, first: int, state: RequestState, generations: Callable[[Slots], UInt64s]
    ) -> None:
        """Put a planned load in flight. Call it after its pages were retired.

        The load fills blocks `first`, ... of the request. It starts at once where the scheduler may call the worker.
        """
        if self.worker is not None:
            self.worker.start_now(load)
        self._flights[load.request_id] = Flight(state, first, load.slots, generations(load.slots))

    def take_unsent(self) -> tuple[Load, ...]:
        """Remove and return the planned loads, for the next step's metadata."""
        loads, self._unsent = tuple(self._unsent), []
        return loads

    def note_bad(self, pages: set[int]) -> None:
        """Note pages that some rank could not fill."""
        for flight in self._flights.values():
            flight.bad |= pages.intersection(flight.slots.tolist())

    def report_early(self, output: Any) -> None:
        """Add loads that ended since the step to the step's `output`, so that vLLM schedules their requests next.

        Without this, where steps overlap, those requests would start one step later. vLLM must see each load once:
        loads that were added early are removed from the later output that reports them.
        """
        told = set(output.finished_recving or ())
        output.finished_recving = told - self._reported_early
        self._reported_early -= told
        landed = self.unreported() - told
        output.finished_recving |= landed
        self._reported_early |= landed

    def unreported(self) -> set[str]:
        """Requests in flight whose load has landed whole, asked of `worker`; empty without one."""
        return self.worker.landed() & self._flights.keys() if self.worker is not None and self._flights else set()

    def is_due(self, request_id: str) -> bool:
        """Whether a later output will still report a load of an older request with this id; until then it is in use."""
        return request_id in self._reported_early

    def landed(self, request_ids: Iterable[str]) -> list[Flight]:
        """End the flights of these requests; returns them, cut to the blocks that every rank has."""
        ended = (self._flights.pop(request_id, None) for request_id in request_ids)
        flights = [flight for flight in ended if flight is not None]
        self._uncounted += sum(flight.land() for flight in flights) * self._block_size
        return flights

    def count(self) -> None:
        """Count imported tokens. Call it in steps with tokens: ``LLM`` before vLLM 0.28 reads only their metrics."""
        if self._uncounted:
            counters.add("vllm_tokens_imported", self._uncounted)
            self._uncounted = 0

    def over(self, request_id: str) -> None:
        """Forget a finished or aborted request. Its planned load is still sent: the load must end in the worker."""
        self._found.pop(request_id, None)
        self._flights.pop(request_id, None)

    def clear(self) -> None:
        """Forget all hits and flights. Planned loads are still sent."""
        self._found.clear()
        self._flights.clear()
