"""Looks out for the first peer engine: until it comes, nothing that is logged shows that any can."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kvmarket.market.control import ControlHalf

LOOK_SECONDS = 1.0


class FirstPeer:
    """Has said what is on when a market is joined, and once more when the first other engine of the space is there."""

    def __init__(self, say: Callable[[ControlHalf], None]) -> None:
        """`say` says it."""
        self._say = say
        self._control: ControlHalf | None = None
        self._due = math.inf

    def joined(self, control: ControlHalf) -> None:
        """A market was joined; on any thread."""
        self._say(control)
        self._control = None if control.peers() else control
        self._due = time.monotonic() + LOOK_SECONDS

    def look(self) -> None:
        """To be called every step: costs nothing but once a second, while there is no peer, some us."""
        control = self._control
        if control is not None and time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK_SECONDS
            if control.peers():
                self._control = None
                self._say(control)
