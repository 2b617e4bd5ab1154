"""Imports, as the scheduler side knows them: hits that were found, loads that are planned, and loads under way."""

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
    """A load under way: its destinations, their generations, and those destinations that a rank could not fill."""

    state: RequestState
    first: int
    slots: Slots
    generations: UInt64s
    bad: set[int] = field(default_factory=set)

    def land(self) -> int:
        """Keep the leading blocks that every rank has, once they have landed; returns how many."""
        if self.bad:
            good = next((i for i, slot in enumerate(self.slots.tolist()) if slot in self.bad), len(self.slots))
            self.slots, self.generations = self.slots[:good], self.generations[:good]
        return len(self.slots)


class Imports:
    """By request: a hit from its match to its pages, a load until it is sent, a flight until it has landed."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._found: dict[str, Hit] = {}
        self._unsent: list[Load] = []
        self._flights: dict[str, Flight] = {}
        self._hastened: set[str] = set()  # loads that vLLM has heard of before the output that tells of them
        self._uncounted = 0  # tokens that have landed
        self.worker: WorkerSide | None = None  # one that the scheduler can call itself, on its thread

    @property
    def planned(self) -> bool:
        """Whether loads wait for the next step to be dispatched."""
        return bool(self._unsent)

    def may_ask(self, state: RequestState, computed: int) -> bool:
        """Whether the market is asked about a request with `computed` tokens; counted if a limit of ours forbids it."""
        if state.imported:
            return False
        reason = state.refusal or ("local hit ends within a block" if computed % self._block_size else "")
        if self.is_due(state.request.request_id):
            reason = "an older request of that name is not over"
        if reason:
            state.refused(reason)
        return not reason

    def found(self, request_id: str, hit: Hit | None) -> None:
        """The last match of a request, None where it is to import nothing."""
        if hit is None:
            self._found.pop(request_id, None)
        else:
            self._found[request_id] = hit

    def plan(self, request_id: str, slots: Slots, tokens: int) -> Load:
        """Plan a load of so many tokens into a request's pages: from where its hit starts, else into the last ones.

        No pages follow those of a load.
        """
        counters.add("vllm_tokens_asked", tokens)
        hit, blocks = self._found.pop(request_id, None), tokens // self._block_size
        first = hit.first if hit else len(slots) - blocks
        load = Load(request_id, hit, slots[first : first + blocks])
        self._unsent.append(load)
        return load

    def take_off(self, load: Load, first: int, state: RequestState, generations: Callable[[Slots], UInt64s]) -> None:
        """The pages of a load are retired: start it, where that can be done now, and note which blocks it is to fill.

        Those are blocks `first`, ... of the request.
        """
        if self.worker is not None:
            self.worker.start_now(load)
        self._flights[load.request_id] = Flight(state, first, load.slots, generations(load.slots))

    def take_unsent(self) -> tuple[Load, ...]:
        """The loads that the next step's metadata carries."""
        loads, self._unsent = tuple(self._unsent), []
        return loads

    def spoilt(self, pages: set[int]) -> None:
        """These pages could not be filled by some rank."""
        for flight in self._flights.values():
            flight.bad |= pages.intersection(flight.slots.tolist())

    def hasten(self, output: Any) -> None:
        """Have vLLM hear with a step's output of what has landed since that step: those requests are in the next one.

        Where steps overlap they would be in the one after it, for which their own step has to be back. vLLM hears of
        each load once: what it has heard of is left out of a later output.
        """
        told = set(output.finished_recving or ())
        output.finished_recving = told - self._hastened
        self._hastened -= told
        landed = self.unheard() - told
        output.finished_recving |= landed
        self._hastened |= landed

    def unheard(self) -> set[str]:
        """The requests whose load has landed, as far as the scheduler can see that itself, and vLLM has not heard."""
        return self.worker.landed() & self._flights.keys() if self.worker is not None and self._flights else set()

    def is_due(self, request_id: str) -> bool:
        """Whether an output is still to tell of a load of that name, of an older request: nothing else may have it."""
        return request_id in self._hastened

    def landed(self, request_ids: Iterable[str]) -> list[Flight]:
        """The flights among these requests; they are over, with the blocks that have landed."""
        ended = (self._flights.pop(request_id, None) for request_id in request_ids)
        flights = [flight for flight in ended if flight is not None]
        self._uncounted += sum(flight.land() for flight in flights) * self._block_size
        return flights

    def count(self) -> None:
        """Count what has landed, with a step that has outputs: LLM before 0.28 reads no other step's metrics."""
        if self._uncounted:
            counters.add("vllm_tokens_imported", self._uncounted)
            self._uncounted = 0

    def over(self, request_id: str) -> None:
        """The request is finished or aborted. A load of it that is planned is still sent: it must end in the worker."""
        self._found.pop(request_id, None)
        self._flights.pop(request_id, None)

    def clear(self) -> None:
        """What was found and what is under way counts no more; planned loads are sent all the same."""
        self._found.clear()
        self._flights.clear()
