"""The scheduler side: offers blocks of finished steps, retires pages before reuse, plans imports. It has no tensors.

KVMarketConnector calls it on vLLM's scheduling thread. Only `join` and `close` block; work that can wait is deferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kvmarket import counters
from kvmarket.market.control import ControlHalf
from kvmarket.pool import Slots, UInt64s, as_slots
from vllm_hook.engine import compat
from vllm_hook.guard import nothing_to_close
from vllm_hook.metadata import Load, RankMemory, StepDone, StepMetadata
from vllm_hook.metrics.summary import Summary
from vllm_hook.scheduler import outputs
from vllm_hook.scheduler.deferred import DeferredWork
from vllm_hook.scheduler.drafts import sure_part
from vllm_hook.scheduler.imports import Imports
from vllm_hook.scheduler.in_flight import InFlightPrefills
from vllm_hook.scheduler.prefill_rate import PrefillRate
from vllm_hook.scheduler.rejoin import Connect, Rejoin
from vllm_hook.scheduler.requests import RequestState, state_of
from vllm_hook.scheduler.reuse import Reuse
from vllm_hook.scheduler.steps import Steps, Written


class SchedulerSide:
    """Offers, retires and imports for one engine. Does nothing until `join` has brought the market's control half."""

    def __init__(
        self,
        block_size: int,
        ranks: int,
        *,
        tenant: str = "",
        offers: bool = True,
        imports: bool = True,
        wait_tokens: int = 0,
        min_tokens: int = 0,
        speculates: bool = False,
    ) -> None:
        self._block_size = block_size
        self._speculates = speculates
        self._ranks = ranks
        self._tenant = tenant
        self._offers = offers
        self._imports = imports
        self._least = max(1, -(-min_tokens // block_size))  # blocks of an import
        self._control: ControlHalf | None = None
        self._rejoin: Rejoin | None = None
        self._ways = ""
        self._states: dict[str, RequestState] = {}
        self._steps = Steps()
        self._loads = Imports(block_size)
        self._deferred = DeferredWork()
        self._reuse = Reuse(self._deferred)
        self._put_off = False  # whether to leave deferred work for the next dispatch
        self._rate = PrefillRate()
        self._in_flight = InFlightPrefills(block_size, wait_tokens and max(wait_tokens, min_tokens), self._rate.seconds)

    # ---- start and end

    def bind_pool(self, pool: Any) -> None:
        """Take vLLM's block pool; from now on every reset of its prefix cache kills all offers before it happens."""

        def emptied() -> None:
            if self._rejoin is not None:
                self._rejoin.emptied(self._steps.next)

        self._reuse.pool = pool
        compat.watch_reset(pool, lambda: self.invalidate("prefix cache reset"), emptied)

    def refusal(self, memories: Sequence[RankMemory]) -> str:
        """Why these ranks can never take part; empty when they can."""
        missing = f"{len(memories)} of {self._ranks} ranks share their memory" if len(memories) != self._ranks else ""
        return next((memory.refusal for memory in memories if memory.refusal), missing)

    def join(
        self,
        ranks: Mapping[int, RankMemory],
        connect: Connect,
        joined: Callable[[ControlHalf], None] = lambda control: None,
        failed: Callable[[str], None] = nothing_to_close,
    ) -> str:
        """Start to join the market with the memory of every rank, by rank; returns the `refusal`, if any.

        Waits for the first attempt as `Rejoin.begin` does; after a failure the engine joins later. `connect`, `joined`
        and `failed` as of `Rejoin`.
        """
        memories = [ranks[rank] for rank in sorted(ranks)]
        if reason := self.refusal(memories):
            return reason
        self._ways = memories[0].ways
        self._loads.worker = memories[0].worker() if len(memories) == 1 else None
        self._rejoin = Rejoin(memories, connect, joined, failed)
        self._rejoin.begin()
        self._market()
        return ""

    def close(self) -> None:
        """Leave the market: all offers are dead when this returns."""
        control, self._control = self._control, None
        self._deferred.clear()
        self._loads.worker = None  # it would keep the engine's pages alive
        if self._rejoin is not None:
            self._rejoin.close()
        if control is not None:
            control.close()

    def fail(self, reason: str) -> None:
        """Fail closed after an exception: kill all offers first, then forget all request states.

        Raises what `ControlHalf.fail_closed` raises: an engine that cannot take its offers down must not go on.
        """
        self.invalidate(reason)
        self._states.clear()

    def invalidate(self, reason: str) -> None:
        """Kill all offers: the cached blocks are no longer valid. Nothing of steps and loads in flight is offered."""
        if self._control is not None:
            self._control.fail_closed(reason)
        self._steps.clear()
        self._deferred.clear()
        self._loads.clear()
        self._in_flight.clear()
        for state in self._states.values():  # their further blocks are computed from invalid ones
            state.refusal = state.refusal or reason

    def describe(self, joined: ControlHalf | None = None) -> str:
        """One line for the log: what is on, and why the rest is off. With `joined` it may be called on any thread."""
        control, watched = joined or self._control, compat.can_watch(self._reuse.pool)
        found = (control.home.place, control.peers()) if control is not None else ("no market", 0)
        return str(Summary(*found, self._offers, self._imports, watched, self._ranks, self._block_size, self._ways))

    # ---- requests

    def match(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """(tokens beyond the `computed` ones to load from peers, whether there are any).

        (None, False): ask again at the next step; a peer is computing them.
        """
        control = self._market()
        if control is None:
            return 0, False
        state = self._states.get(request.request_id)
        if state is None or state.request is not request:
            state = self._states[request.request_id] = state_of(request, self._tenant)
        first = computed // self._block_size
        state.restart(first)
        if not self._imports or not self._loads.may_ask(state, computed):
            return 0, False
        last = (request.num_tokens - 1) // self._block_size  # vLLM must compute at least one token
        if last <= first:
            return 0, False
        tokens = state.tokens(last * self._block_size)
        if state.refusal:
            state.refused(state.refusal)
            return 0, False
        hit = control.match(tokens, tenant=state.tenant, first=first)
        if self._in_flight.worth(control, request.request_id, tokens, state.tenant, first + hit.blocks):
            return None, False
        if hit.blocks < self._least:
            self._loads.found(request.request_id, None)
            return 0, False
        self._loads.found(request.request_id, hit)
        return hit.blocks * self._block_size, True

    def allocated(self, request: Any, slots: Sequence[int], external: int) -> None:
        """A request was given its pages: plan the load of `external` tokens into them; retire the new pages."""
        if external:
            pages = as_slots(slots)
            load = self._loads.plan(request.request_id, pages, external)
        if self._control is None:
            return
        state = self._states.get(request.request_id)
        fresh = state.whole(slots) if state else slots
        known = len(slots) - len(fresh)
        self._reuse.retire(self._control, pages[known:] if external else fresh)
        if state is None:
            return
        if external:
            self._put_in_flight(load, state)
        if state.hit:
            counters.add("vllm_tokens_local", state.hit * self._block_size)
            state.hit = 0
        if self._offers and not state.refusal:
            blocks, at_hand = request.num_tokens // self._block_size, known + external // self._block_size
            self._in_flight.begin(self._control, request.request_id, state, blocks, at_hand)

    def finished(self, request_id: str) -> None:
        """The request is over. Blocks that its steps in flight complete are still offered when the steps are back."""
        self._states.pop(request_id, None)
        self._in_flight.over(request_id)
        self._loads.over(request_id)
        if not self._states:  # no further step may come
            self._steps.rest()
            self._catch_up(promises=not self._steps.computing)

    # ---- steps

    def dispatch(self, output: Any) -> StepMetadata:
        """A step is about to be dispatched: retire the pages it may overwrite; keep the blocks it will complete."""
        if tokens := bool(output.num_scheduled_tokens):
            self._loads.count()
        self._rate.dispatched(self._steps.next, output.num_scheduled_tokens)
        control = self._market()
        if control is None:
            return self.plain_step(tokens=tokens)
        self._reuse.retire(control, outputs.new_pages(output, self._states))
        now = self._put_off or self._steps.computing or not (tokens or self._loads.unreported())
        if now and not self._loads.planned and not self._steps.waking:
            self._deferred.run()
        return self.plain_step(list(self._completed(control, output)) if self._offers else [], tokens)

    def plain_step(self, written: list[Written] | None = None, tokens: bool = True) -> StepMetadata:
        """The next step's metadata, with the planned loads: these must reach the workers even after an exception."""
        gone, far = (self._control.take_gone(), self._control.take_far()) if self._control is not None else ((), ())
        idle = not (tokens or self._steps.computing)
        left, weights = self._rejoin.told() if self._rejoin is not None else ((), ())
        step = self._steps.dispatch(written or [], tokens)
        return StepMetadata(step, self._loads.take_unsent(), (*gone, *left), weights, idle, tuple(far))

    def returned(self, output: Any) -> None:
        """A step's output is back: offer the blocks of the step and of ended loads, later if a first token is due."""
        self._loads.report_early(output)
        done, self._put_off = output.kv_connector_worker_meta, self._steps.waking and bool(self._states)
        whole = isinstance(done, StepDone) and done.ranks == self._ranks
        if whole:
            self._rate.returned(done.step)
            self._check_weights(done)
        bad = output.invalid_block_ids
        if bad:
            self._steps.discard(bad)
            self._loads.note_bad(bad)
        for written in self._steps.through(done.step) if whole else ():
            sure = sure_part(written, self._block_size) if self._speculates else written
            self._deferred.add(partial(self._offer, sure.state, sure.first, sure.slots, sure.generations))
        for pool in done.unreachable if isinstance(done, StepDone) else ():
            if self._control is not None:
                self._control.avoid(pool)
        landed = self._loads.landed(output.finished_recving)
        first = bool(landed) and not self._steps.computing
        if first:
            self._steps.rest()
        if not self._deferred.may_wait(self._put_off or first):
            self._catch_up()
        for flight in landed:
            self._deferred.add(partial(self._offer, flight.state, flight.first, flight.slots, flight.generations))

    # ---- internals

    def _market(self) -> ControlHalf | None:
        """The market's control half; None while the engine is not in the market. Takes a new one when there is one.

        Requests that began before the engine joined have no state, and nothing of them is offered.
        """
        if self._control is None and self._rejoin is not None:
            self._control = self._rejoin.take()
        return self._control

    def _catch_up(self, promises: bool = True) -> None:
        """Run the deferred work; then, where `promises`, settle the promises of finished requests."""
        self._deferred.run()
        if promises and self._control is not None:
            self._in_flight.end(self._control)

    def _check_weights(self, done: StepDone) -> None:
        """Leave the market when a step computed with other weights than those in the engine's fingerprint."""
        if self._rejoin is not None and self._rejoin.changed(done.step, done.weights):
            self.fail("weights changed")
            control, self._control = self._control, None
            self._rejoin.leave(control, done.step, done.weights)

    def _put_in_flight(self, load: Load, state: RequestState) -> None:
        """Put a planned load in flight; its pages are retired. A request has one import at most."""
        state.imported = True
        if load.hit is not None and self._control is not None:
            self._loads.put_in_flight(load, load.hit.first, state, self._control.generations)
            self._deferred.add(lambda: self._reuse.watch(load.slots.tolist()))

    def _completed(self, control: ControlHalf, output: Any) -> Iterator[Written]:
        """The blocks that become whole with the tokens scheduled in this step, with their generations as of now."""
        for state, first, slots in outputs.completed(output, self._states, self._block_size, self._speculates):
            self._reuse.watch(slots)
            yield Written(state, first, slots, control.generations(slots))

    def _offer(self, state: RequestState, first: int, slots: Sequence[int] | Slots, generations: UInt64s) -> None:
        """Offer those of the blocks that have all their tokens: a request may stop in the middle of a step."""
        if self._control is None or not self._offers or not len(slots):
            return
        tokens = state.tokens((first + len(slots)) * self._block_size)
        count = len(tokens) // self._block_size - first
        if count > 0:
            whole = tokens[: (first + count) * self._block_size]
            self._control.offer(whole, slots[:count], generations[:count], tenant=state.tenant, first=first)
            self._in_flight.offered(self._control, state.request.request_id, first + count)
