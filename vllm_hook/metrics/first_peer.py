"""Waits for the first peer engine, so that the log shows when the engine can share with another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from kvmarket.market.control import ControlHalf
from kvmarket.registry.client.home import Home
from kvmarket.support.threads import started
from vllm_hook.guard import Guard, nothing_to_close

LOOK_SECONDS = 1.0
ASK_SECONDS, LONGEST_ASK = 5.0, 60.0  # until it asks who is near, and is alone: doubled each time


class FirstPeer:
    """Calls `say` when a market is joined, and once more when the first engine comes that can share with this one.

    Until that engine comes, a thread of its own looks for it once a second, and calls `say_others` after 5, 15, 35 and
    75 seconds, then once a minute. The thread ends with the first peer, or when the engine leaves the market.
    """

    def __init__(self, say: Callable[[ControlHalf], None], say_others: Callable[[Home], None]) -> None:
        """`say` logs what is on. `say_others` asks which engines are near and logs why they do not share."""
        self._say, self._say_others = say, say_others

    def joined(self, control: ControlHalf) -> None:
        """Note that the market was joined, and call `say`; on any thread."""
        self._say(control)
        if not control.peers():
            started(partial(self._look_out, control), "kvmarket-lookout", "lookout_left_out")

    def _look_out(self, control: ControlHalf) -> None:
        pause = ASK_SECONDS
        ask_at = time.monotonic() + pause
        while not control.home.left_within(LOOK_SECONDS):
            with Guard("lookout", nothing_to_close):
                if control.peers():
                    self._say(control)
                    return
                if time.monotonic() >= ask_at:
                    pause = min(2 * pause, LONGEST_ASK)
                    ask_at = time.monotonic() + pause
                    self._say_others(control.home)
