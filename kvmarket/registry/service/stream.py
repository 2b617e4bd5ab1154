"""The stream of changes of one space, from the service to every engine in it: many changes share one message."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Iterator

from kvmarket.registry.protocol.messages import Change, OfferBlocks, PoolJoined, Promise, Retire, Snapshot
from kvmarket.registry.space.feed import Feed

LINGER_SECONDS = 0.005  # retirements may wait so long for other changes: generations already make their offers dead
CHANGES_BYTES = 1 << 18  # about so much in one message, because an engine decodes it in one piece


class Stream:
    """Collects changes and sends them in order to the feed of every listener (a session)."""

    def __init__(self) -> None:
        """Start without listeners."""
        self.feeds: dict[Hashable, Feed] = {}
        self._waiting: list[tuple[Change, Hashable]] = []
        self._due = math.inf  # when the waiting changes must be sent

    def add(self, change: Change, by: Hashable = None) -> None:
        """Keep a change for the next `flush`, which sends it to every listener but `by`, from which it came."""
        self._waiting.append((change, by))
        lingers = isinstance(change, Retire)
        self._due = min(self._due, time.monotonic() + (LINGER_SECONDS if lingers else 0.0))

    def due(self) -> float:
        """Seconds until `flush` should be called; zero or less means now."""
        return self._due - time.monotonic()

    def flush(self) -> None:
        """Send the added changes to all listeners. Costs a few us, and the encoding of each message per listener."""
        waiting, self._waiting, self._due = self._waiting, [], math.inf
        for listener, feed in self.feeds.items() if waiting else ():
            for part in _parts(change for change, by in waiting if by != listener):
                feed.tell(*part)


def _parts(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Cut `changes` into parts of about `CHANGES_BYTES` each."""
    part: list[Change] = []
    size = 0
    for change in changes:
        if size >= CHANGES_BYTES:
            yield part
            part, size = [], 0
        part.append(change)
        size += _bytes(change)
    if part:
        yield part


def _bytes(change: Change) -> int:
    """Approximate bytes of a change in a message."""
    match change:
        case OfferBlocks():
            return 128 + len(change.tokens) + 3 * len(change.slots)
        case Snapshot():
            return 128 + len(change.tokens) + len(change.runs) + len(change.offers) + len(change.checksums)
        case Promise():
            return 128 + len(change.tokens)
        case Retire():
            return 128 + len(change.slots or b"")
        case PoolJoined():
            return 128 + len(change.record.description)
        case _:
            return 128
