"""A toy of vLLM's scheduler and engine core around a real scheduler side and a real worker side, driven at random.

Requests come, compute in chunks, decode, are preempted and aborted. Loads take some polls, deliver a part, or cannot
start. Up to `queue` steps are in flight. The engine joins the market late, leaves it and joins again. The toy asserts
what vLLM relies on: each load ends once, for a request that waits for it or was aborted. It also asserts what readers
rely on: the page of a live offer holds what was offered.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kvmarket.market.offer import Hit
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, FakePool, joined, request, step_of
from tests.vllm_hook.scheduler.toy_copy import Copy
from vllm_hook.guard import Guard
from vllm_hook.worker.side import WorkerSide

PAGES, BUDGET = 59, 24  # pages of the pool, and tokens that a step computes at most
LATE, UNSTARTED = 0.3, 0.03  # chances: the market is joined late; a load does not start


Plans = dict[str, tuple[Any, int, "list[int] | None"]]  # by request: itself, tokens to compute, pages it got


@dataclass
class Step:
    """A dispatched step: its requests as they were at dispatch, and the pages that it writes."""

    output: Any
    number: int  # counts steps with tokens; 0: an empty one
    computes: list[tuple[Any, int, int]] = field(default_factory=list)  # request, tokens after it, its preemptions
    writes: dict[int, tuple[Any, int]] = field(default_factory=dict)  # page: request, its tokens up to the page's end


class Toy:
    """One engine. Its requests are those of `fakes.request` with further attributes of the toy.

    `here`: the scheduler side may call the worker side directly, as on one thread.
    """

    def __init__(self, seed: int, queue: int, *, here: bool) -> None:
        self.chance = random.Random(seed)
        self._names, self._aborts = self.chance.choice((("abcdefgh", 0.1), ("abc", 0.4)))  # chance of an abort a step
        self.holds: dict[int, tuple[int, ...] | None] = {}  # page: tokens up to its end; None while it is written
        self.pool = FakePool(PAGES + 1)
        for block in self.pool.blocks:
            block.ref_cnt = 0
        self.worker = WorkerSide(None, None)
        self.worker._data = self  # type: ignore[assignment]
        self.side, self.control = joined(self.pool, worker=self.worker if here else None)
        if self.chance.random() < LATE:
            self.leave()
        self.free = list(range(1, PAGES + 1))
        self.requests: dict[str, Any] = {}
        self.loading: Counter[str] = Counter()  # ended or running loads by request that vLLM has not been told of
        self.landed: set[str] = set()
        self._queue = queue
        self._flying: deque[Step] = deque()
        self._waiting: list[Any] = []
        self._running: list[Any] = []
        self._finished = False  # whether a request finished since the last step
        self._number = 0
        self._back = 0
        self._deferred: list[tuple[int, list[int]]] = []  # pages, free when that step is back

    # ---- as a data half

    def fetch(self, hit: Hit, slots: Any) -> Copy:
        if self.chance.random() < UNSTARTED:
            raise RuntimeError("out of memory")
        return Copy(self, hit.first, slots.tolist())

    def forget(self, pools: Any) -> None:
        pass

    def map_ahead(self, pools: Any) -> None:
        pass

    # ---- what may happen

    def come(self) -> None:
        """A request comes, whose name may have been used before."""
        name = self.chance.choice(self._names)
        if name not in self.requests:
            tokens = self.chance.randrange(3, 30)
            more = {"state": "waits", "computed": 0, "pages": [], "coming": 0, "step": 0, "preempted": 0}
            one = request(name, tokens, most=tokens + self.chance.choice((1, 1, 2, 6)), **more)
            self.requests[name] = one
            self._waiting.append(one)

    def leave(self) -> None:
        """The engine leaves the market, or has not joined it yet."""
        self.side.fail("left")
        self.side._control = None
        self.side._rejoin.take = lambda: None  # type: ignore[method-assign, union-attr]
        self.control.close()

    def join(self) -> None:
        """The engine joins the market: the scheduler side notices at some moment of its next scheduling rounds."""
        if self.side._control is None:
            found = self.control = FakeControl()
            seen = lambda: found if self.chance.random() < 0.3 else None  # noqa: E731
            self.side._rejoin.take = seen  # type: ignore[method-assign, union-attr, assignment]

    def step(self) -> None:
        """Step as ``step_with_batch_queue`` does: dispatch; take the oldest output unless more can be dispatched."""
        if self.requests or self._finished:
            self._flying.append(self._dispatch())
            if len(self._flying) < self._queue and (self.requests or self._finished):
                return
        if self._flying:
            step = self._flying.popleft()
            alive = [*self._waiting, *self._running]
            if alive and self.chance.random() < self._aborts:
                self._finish(self.chance.choice(alive))
            self._return(step)

    @property
    def idle(self) -> bool:
        return not (self._flying or self.requests or self._finished)

    # ---- scheduler

    def _dispatch(self) -> Step:
        planned: Plans = {}
        budget = self._continue(planned)
        self._admit(planned, budget)
        kinds: dict[str, Any] = {"begins": {}, "runs": {}, "resumes": {}}
        for name, (one, count, pages) in planned.items():
            kinds[one.state][name] = pages, one.computed, count
            one.state = "runs"
        output = step_of(kinds["begins"], kinds["runs"] | kinds["resumes"], set(kinds["resumes"]))
        metadata = self._guarded(self.side.dispatch, output) or self.side.plain_step()
        self._number += bool(planned)
        step = Step(None, self._number if planned else 0)
        for one, count, _ in planned.values():
            self._compute(step, one, count)
        self._finished = False
        self._check()
        worker = self.worker
        worker.begin()
        for call in (worker.start, worker.poll):
            with Guard("toy", worker.failed):
                call(metadata)
        step.output = SimpleNamespace(
            finished_recving=worker.take_finished() or None,
            invalid_block_ids=worker.take_bad(),
            kv_connector_worker_meta=worker.done(metadata),
        )
        return step

    def _continue(self, planned: Plans) -> int:
        """Plan for running requests, and preempt if pages are short; returns the tokens left of the step's budget."""
        budget = BUDGET
        for one in list(self._running):
            count = min(one.num_tokens + one.coming - one.computed, budget)
            last = one.coming and (self._queue == 1 or one.num_tokens + one.coming >= one.most)
            if count <= 0 or last or one not in self._running:
                continue
            pages = self._take(one, count)
            if pages is not None:
                planned[one.request_id] = one, count, pages or None
                budget -= count
            elif (victim := self._running[-1]) is not one and victim.request_id not in planned:
                self._preempt(victim)
        return budget

    def _admit(self, planned: Plans, budget: int) -> None:
        """Start loads, and plan for requests that wait."""
        for one in list(self._waiting):
            name = one.request_id
            if one.state == "loads":
                if name not in self.landed:
                    continue
                self.landed.remove(name)
                one.state = "waits"
                if not one.computed:
                    self._release(one.pages, 0)
                    one.pages = []
            if budget <= 0:
                break
            external = 0
            if not one.computed:
                external, _ = self._guarded(self.side.match, one, 0) or (0, False)
            count = external or min(one.num_tokens - one.computed, budget)
            if self._take(one, count) is None:
                break
            self._guarded(self.side.allocated, one, list(one.pages), external)
            if external:
                one.state, one.computed = "loads", external
                self.loading[name] += 1
                continue
            self._waiting.remove(one)
            self._running.append(one)
            one.state = "resumes" if one.preempted else "begins"
            budget -= count
            planned[name] = one, count, list(one.pages)

    def _compute(self, step: Step, one: Any, count: int) -> None:
        """Note the pages that a step writes for a request; the tokens count as computed at once, as in vLLM."""
        first, one.step, after = one.computed // BLOCK, step.number, one.computed + count
        for block, page in enumerate(one.pages[first : -(-after // BLOCK)], first + 1):
            self.holds[page] = None
            if block * BLOCK <= after:
                step.writes[page] = one, block * BLOCK
        one.computed = after
        one.coming += after >= one.num_tokens + one.coming
        step.computes.append((one, after, one.preempted))

    def _return(self, step: Step) -> None:
        """A step's output is back."""
        for page, (one, end) in step.writes.items():
            self.holds[page] = tuple(one.all_token_ids[:end]) if end <= one.num_tokens else None
        self._back = max(self._back, step.number)
        due, self._deferred = self._deferred, []
        for number, pages in due:
            self._release(pages, number)
        self._spoil(step.output.invalid_block_ids)
        for one, after, preempted in step.computes:
            if one.state != "over" and one.preempted == preempted and one.coming and after >= one.num_tokens:
                one.coming -= 1
                one.all_token_ids.append(one.num_tokens)
                one.num_tokens += 1
                if one.num_tokens >= one.most:
                    self._finish(one)
        self._guarded(self.side.returned, step.output)
        for name in step.output.finished_recving or ():
            one = self.requests[name]
            self.loading[name] -= 1
            assert self.loading[name] >= 0, "a load ended twice"
            assert one.state in ("loads", "over"), f"a load ended for a request that {one.state}"
            if one.state == "loads":
                self.landed.add(name)
            else:
                self._drop(one)
        self._check()

    def _spoil(self, bad: set[int]) -> None:
        """Cut each waiting request's computed tokens at its first page that the load could not fill."""
        for one in self._waiting:
            if one.state == "loads":
                whole = next((i for i, page in enumerate(one.pages) if page in bad), len(one.pages))
                one.computed = min(one.computed, whole * BLOCK)
        assert all(bad.isdisjoint(one.pages) for one in self._running)

    def _finish(self, one: Any) -> None:
        """End a request, and free its pages unless a load that vLLM has not been told of may write them."""
        loads = one.state == "loads" and one.request_id not in self.landed
        self.landed.discard(one.request_id)
        (self._running if one.state == "runs" else self._waiting).remove(one)
        one.state, self._finished = "over", True
        self._guarded(self.side.finished, one.request_id)
        if not loads:
            self._drop(one)

    def _drop(self, one: Any) -> None:
        self._release(one.pages, one.step)
        del self.requests[one.request_id]

    def _preempt(self, one: Any) -> None:
        self._running.remove(one)
        self._release(one.pages, one.step)
        one.pages, one.computed, one.coming, one.state = [], 0, 0, "waits"
        one.preempted += 1
        self._waiting.insert(0, one)

    def _take(self, one: Any, count: int) -> list[int] | None:
        """Give a request the pages for so many more tokens, oldest free page first; None if too few are free."""
        need = max(0, -(-(one.computed + count) // BLOCK) - len(one.pages))
        if need > len(self.free):
            return None
        taken, self.free = self.free[:need], self.free[need:]
        for page in taken:
            self.pool.hand_out(page)
            self.pool.blocks[page].ref_cnt = 1
        one.pages = one.pages + taken
        return taken

    def _release(self, pages: list[int], number: int) -> None:
        """Free pages once step `number`, which may write them, is back."""
        if number > self._back:
            self._deferred.append((number, pages))
            return
        for page in pages:
            self.pool.blocks[page].ref_cnt = 0
        self.free += pages

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        with Guard("toy", self.side.fail):
            return call(*arguments)

    def _check(self) -> None:
        for page, tokens in self.control.live().items():
            assert self.holds.get(page) == tokens, f"page {page} is on offer and holds something else"
