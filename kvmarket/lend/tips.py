"""The newest offers of other engines, as the ends of the prefixes that they are of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from kvmarket import counters
from kvmarket.registry.protocol.messages import Before, PoolRecord

MOST = 1 << 16  # that wait to be looked at


class Tip(NamedTuple):
    """The last block of offers in `pool` that follow one another; `before`: the block that they go on from, if told."""

    pool: str
    block: Before
    before: Before | None


class Tips:
    """Tips in the order in which they came; one that goes on from another takes its place. Thread-safe."""

    def __init__(self) -> None:
        """Start with none."""
        self._lock = threading.Lock()
        self._tips: OrderedDict[tuple[str, Before], Before | None] = OrderedDict()

    def note(self, record: PoolRecord, block: Before, before: Before | None) -> None:
        """Note that offers up to `block` came, which go on from `before`; those of lenders do not count.

        A client calls it (see `OnOffer`).
        """
        if record.lent:
            return
        with self._lock:
            if before is not None and (record.pool, before) in self._tips:
                before = self._tips.pop((record.pool, before))
            self._tips[record.pool, block] = before
            if len(self._tips) > MOST:
                self._tips.popitem(last=False)
                counters.add("lend_passed_over", reason="offers came faster than they were looked at")

    def take(self, most: int) -> list[Tip]:
        """Take the oldest ones, up to `most`."""
        with self._lock:
            taken = [self._tips.popitem(last=False) for _ in range(min(most, len(self._tips)))]
        return [Tip(pool, block, before) for (pool, block), before in taken]
