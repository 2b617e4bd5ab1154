"""Looks out for the first peer engine: until it comes, nothing that is logged shows that any can."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from kvmarket.market.control import ControlHalf
from kvmarket.registry.client.home import Home
from kvmarket.support.threads import started
from vllm_hook.guard import Guard, unconcerned

LOOK_SECONDS = 1.0
ASK_SECONDS, LONGEST_ASK = 5.0, 60.0  # until it asks who is near, and is alone: doubled each time


class FirstPeer:
    """Has said what is on when a market is joined, and once more when the first other engine of the space is there.

    Until then a thread of its own looks out, and asks now and then who is near and shares nothing with this engine: an
    engine that is alone asks once a minute in the end, one that has met a peer never. The thread ends with the first
    peer, or when the market is left.
    """

    def __init__(self, say: Callable[[ControlHalf], None], say_others: Callable[[Home], None]) -> None:
        """`say` says what is on; `say_others` asks who is near, says that, and may take seconds."""
        self._say, self._say_others = say, say_others

    def joined(self, control: ControlHalf) -> None:
        """A market was joined; on any thread."""
        self._say(control)
        if not control.peers():
            started(partial(self._look_out, control), "kvmarket-lookout", "lookout_left_out")

    def _look_out(self, control: ControlHalf) -> None:
        pause = ASK_SECONDS
        ask_at = time.monotonic() + pause
        while not control.home.left_within(LOOK_SECONDS):
            with Guard("lookout", unconcerned):
                if control.peers():
                    self._say(control)
                    return
                if time.monotonic() >= ask_at:
                    pause = min(2 * pause, LONGEST_ASK)
                    ask_at = time.monotonic() + pause
                    self._say_others(control.home)
