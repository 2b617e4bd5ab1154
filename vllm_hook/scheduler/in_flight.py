"""Requests of one prompt that come to several engines at once: the later ones wait for what the first one computes.

An engine promises a prompt to the market when it begins to compute it. A request whose prompt another engine has
promised is not scheduled until that has been offered, if enough of it is: importing costs less than computing it again,
and the engine computes other requests meanwhile. Who has begun never waits, so that no two engines wait for each other.
No request waits longer than its engine would take to compute what is promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvmarket import counters
from kvmarket.market.control import ControlHalf
from kvmarket.registry.trie.tokens import Int32s
from vllm_hook.scheduler.prefill_rate import PrefillRate
from vllm_hook.scheduler.requests import RequestState

STALLED_SECONDS = 1.0  # without a new block on offer: whoever promised it is stuck, or computes something else first
OFFER_SECONDS = 0.02  # from the end of a peer's step until a request that waits has seen what it offers: at most

STALLED = "the engine that computes the prompt offers nothing more of it"
TOO_LONG = "it has taken as long as computing the prompt here"
TOO_SLOW = "the engine that computes the prompt is slower than this one"


@dataclass(slots=True)
class _Wait:
    """A request that waits, `begun` when `first` blocks were on offer, for `awaited` more.

    `blocks` were on offer when it last looked, and no more have come since `since`.
    """

    begun: float
    first: int
    awaited: int
    blocks: int
    since: float

    def given_up(self, now: float, longest: float) -> str:
        """Why it is to end now, if it may take so many seconds; empty while it may go on.

        The peer's pace is that of its blocks so far, at the moment when the last of them came.
        """
        if now - self.since > STALLED_SECONDS:
            return STALLED
        if now - self.begun > longest:
            return TOO_LONG
        so_far, came = self.since - self.begun, self.blocks - self.first  # both are zero until something has come
        return TOO_SLOW if so_far * self.awaited > longest * came else ""


class InFlightPrefills:
    """Which requests wait, and which prompts this engine has promised itself. All on the scheduling thread."""

    def __init__(self, block_size: int, tokens: int, seconds: Callable[[int], float] | None = None) -> None:
        """Wait where at least so many `tokens` need not be computed; 0: never wait, and promise nothing.

        `seconds` says how long this engine takes to compute so many tokens.
        """
        self._blocks = -(-tokens // block_size)
        self._block_size = block_size
        self._seconds = seconds or PrefillRate().seconds
        self._waiting: dict[str, _Wait] = {}
        self._promised: dict[str, tuple[int, int]] = {}  # request -> number of its promise, blocks of its prompt
        self._over: set[str] = set()  # requests that have waited, and wait no more
        self._ending: list[str] = []  # requests that are over, with a promise

    def worth(self, control: ControlHalf, request: str, tokens: Int32s, tenant: str, offered: int) -> bool:
        """Whether a request of these `tokens` should wait for what others compute, `offered` blocks being at hand.

        Costs some us; nothing for a prompt that is too short.
        """
        if request in self._promised:  # it was preempted: what it promised may be long in coming
            self._settle(control, request)
        if not self._blocks or request in self._over or len(tokens) // self._block_size - offered < self._blocks:
            return self._go_on(request)
        coming = control.promised(tokens, tenant=tenant) - offered
        if coming < self._blocks:
            return self._go_on(request)
        now = time.monotonic()
        wait = self._waiting.get(request)
        if wait is None:
            counters.add("vllm_requests_waited")
            wait = self._waiting[request] = _Wait(now, offered, coming, offered, now)
        elif offered > wait.blocks:
            wait.blocks, wait.since = offered, now
        reason = wait.given_up(now, self._seconds(wait.awaited * self._block_size) + OFFER_SECONDS)
        if reason:
            counters.add("vllm_wait_given_up", reason=reason)
            return self._go_on(request)
        return True

    def begin(self, control: ControlHalf, request: str, state: RequestState, blocks: int, at_hand: int) -> None:
        """The request is scheduled, `at_hand` of its prompt's whole `blocks` computed or imported: promise the others.

        Costs nothing where those are too few, else what telling the prompt costs.
        """
        if self._blocks and blocks - at_hand >= self._blocks and request not in self._promised:
            whole = state.tokens(blocks * self._block_size)
            if not state.refusal:
                self._promised[request] = control.promise(whole, tenant=state.tenant), blocks

    def offered(self, control: ControlHalf, request: str, blocks: int) -> None:
        """The first `blocks` blocks of the request are on offer now: its promise is kept when those are all."""
        if request in self._promised and blocks >= self._promised[request][1]:
            self._settle(control, request)

    def over(self, request: str) -> None:
        """The request is finished or aborted. What its steps in flight complete will still be offered."""
        self._waiting.pop(request, None)
        self._over.discard(request)
        if request in self._promised:
            self._ending.append(request)

    def end(self, control: ControlHalf) -> None:
        """A step's output is back, and its blocks are offered: take back what requests promised that are over."""
        while self._ending:
            request = self._ending.pop()
            if request in self._promised:
                self._settle(control, request)

    def clear(self) -> None:
        """All promises were dropped with the offers (see `ControlHalf.fail_closed`); who has waited waits no more."""
        self._over.update(self._waiting)
        self._waiting.clear()
        self._promised.clear()
        self._ending.clear()

    def _go_on(self, request: str) -> bool:
        """Do not wait, or no more; False. Who has waited once does not wait again: it must get its turn."""
        if self._waiting.pop(request, None) is not None:
            self._over.add(request)
        return False

    def _settle(self, control: ControlHalf, request: str) -> None:
        number, _ = self._promised.pop(request)
        control.settle(number)
