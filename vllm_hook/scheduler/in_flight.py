"""In-flight prefills: when engines get the same prompt at once, the later ones wait for the blocks of the first one.

An engine promises a prompt to the market when it begins to compute it. When another engine has promised enough blocks
of a request's prompt, the request is not scheduled until these are offered: an import costs less than computing them
again, and the engine computes other requests meanwhile. A request never waits while its own promise is open, so two
engines never wait for each other. No request waits longer than its own engine would need to compute the promised
blocks, plus `OFFER_SECONDS`.
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

STALLED_SECONDS = 1.0  # without a new offer: the promising engine hangs, or computes other requests first
OFFER_SECONDS = 0.02  # at most, from the end of a peer's step until a waiting request sees the offer

STALLED = "the engine that computes the prompt offers nothing more of it"
TOO_LONG = "it has taken as long as computing the prompt here"
TOO_SLOW = "the engine that computes the prompt is slower than this one"


@dataclass(slots=True)
class _Wait:
    """A waiting request. The wait began at `begun`, with `first` blocks offered, for `awaited` more blocks.

    `blocks` were offered at the last look; the last new one came at `since`. Times are `time.monotonic` seconds.
    """

    begun: float
    first: int
    awaited: int
    blocks: int
    since: float

    def given_up(self, now: float, longest: float) -> str:
        """Why the wait must end at `now`, when it may last `longest` seconds; empty while it may go on.

        The peer is too slow if, at its pace until its last new block, the awaited blocks would take over `longest`.
        """
        if now - self.since > STALLED_SECONDS:
            return STALLED
        if now - self.begun > longest:
            return TOO_LONG
        so_far, came = self.since - self.begun, self.blocks - self.first  # both are zero until a block has come
        return TOO_SLOW if so_far * self.awaited > longest * came else ""


class InFlightPrefills:
    """Which requests wait, and which prompts this engine has promised. Call it on the scheduling thread only."""

    def __init__(self, block_size: int, tokens: int, seconds: Callable[[int], float] | None = None) -> None:
        """A request waits when at least `tokens` of its tokens are promised; 0: never wait, and promise nothing.

        `seconds(n)` is how long this engine takes to compute n tokens.
        """
        self._blocks = -(-tokens // block_size)
        self._block_size = block_size
        self._seconds = seconds or PrefillRate().seconds
        self._waiting: dict[str, _Wait] = {}
        self._promised: dict[str, tuple[int, int]] = {}  # request -> number of its promise, whole blocks of its prompt
        self._over: set[str] = set()  # requests that have waited, and may not wait again
        self._ending: list[str] = []  # finished requests whose promise is still open

    def worth(self, control: ControlHalf, request: str, tokens: Int32s, tenant: str, offered: int) -> bool:
        """Whether a request with these `tokens` should wait for blocks that peers compute.

        `offered` leading blocks need no wait: peers offer them, or they are local. Counts waits, and those given up.
        Costs some us; next to nothing for a prompt that is too short.
        """
        if request in self._promised:  # preempted: it may take long to compute what it promised
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
        """The request is scheduled: promise those of its prompt's `blocks` whole blocks that it will compute.

        The first `at_hand` blocks are computed or imported already. When too few others remain nothing is promised;
        else the cost is that of sending the prompt to the service.
        """
        if self._blocks and blocks - at_hand >= self._blocks and request not in self._promised:
            whole = state.tokens(blocks * self._block_size)
            if not state.refusal:
                self._promised[request] = control.promise(whole, tenant=state.tenant), blocks

    def offered(self, control: ControlHalf, request: str, blocks: int) -> None:
        """The first `blocks` blocks of the request are offered: settle its promise when these are all blocks."""
        if request in self._promised and blocks >= self._promised[request][1]:
            self._settle(control, request)

    def over(self, request: str) -> None:
        """The request is finished or aborted. `end` settles its promise, once its steps in flight are offered."""
        self._waiting.pop(request, None)
        self._over.discard(request)
        if request in self._promised:
            self._ending.append(request)

    def end(self, control: ControlHalf) -> None:
        """Settle the promises of finished requests. Call it when the blocks of returned steps are offered."""
        while self._ending:
            request = self._ending.pop()
            if request in self._promised:
                self._settle(control, request)

    def clear(self) -> None:
        """Forget all promises: `ControlHalf.fail_closed` has dropped them. Requests that waited do not wait again."""
        self._over.update(self._waiting)
        self._waiting.clear()
        self._promised.clear()
        self._ending.clear()

    def _go_on(self, request: str) -> bool:
        """End the request's wait, if any, and return False. A request waits at most once: it must get its turn."""
        if self._waiting.pop(request, None) is not None:
            self._over.add(request)
        return False

    def _settle(self, control: ControlHalf, request: str) -> None:
        number, _ = self._promised.pop(request)
        control.settle(number)
