"""Requests that grow: whether new offers are of a request that was seen before, or of another one."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from kvmarket.lend.tips import Tip
from kvmarket.registry.protocol.messages import Before

GROWING_SECONDS = 30.0  # offers that go on so soon are of the same request; later ones are of another
MOST_GROWING = 1 << 14  # requests that are remembered for that


class Request(NamedTuple):
    """A request so far: when its last block was seen, how many blocks it has, the keys of the first and the last."""

    time: float
    blocks: int
    first: bytes
    last: bytes


class Growing:
    """The requests of which offers came lately, by their last block."""

    def __init__(self) -> None:
        """Start with none."""
        self._requests: OrderedDict[tuple[str, Before], Request] = OrderedDict()

    def take(self, tip: Tip) -> Request | None:
        """The request that a tip goes on with, which is forgotten; None if it is another one."""
        known = self._requests.pop((tip.pool, tip.before), None) if tip.before is not None else None
        return known if known is not None and time.monotonic() - known.time < GROWING_SECONDS else None

    def note(self, tip: Tip, blocks: int, first: bytes, last: bytes) -> None:
        """Note a request up to a tip; the one that was noted first is forgotten beyond `MOST_GROWING`."""
        self._requests[tip.pool, tip.block] = Request(time.monotonic(), blocks, first, last)
        if len(self._requests) > MOST_GROWING:
            self._requests.popitem(last=False)
