"""Waits for the first peer engine, so that the log shows when the engine can share with another one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kvmarket.market.control import ControlHalf

LOOK_SECONDS = 1.0  # between two looks


class FirstPeer:
    """Calls `say` when a market is joined, and once more when the first engine comes that can share with this one."""

    def __init__(self, say: Callable[[ControlHalf], None]) -> None:
        """`say` logs what is on."""
        self._say = say
        self._control: ControlHalf | None = None
        self._due = math.inf

    def joined(self, control: ControlHalf) -> None:
        """Note that the market was joined, and call `say`; on any thread."""
        self._say(control)
        self._control = None if control.peers() else control
        self._due = time.monotonic() + LOOK_SECONDS

    def look(self) -> None:
        """Call it every step. Costs some us once a second while there is no peer, else next to nothing."""
        control = self._control
        if control is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK_SECONDS
            if control.peers():
                self._control = None
                self._say(control)
