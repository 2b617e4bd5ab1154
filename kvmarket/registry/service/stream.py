"""The changes of one space, from the service to every engine in it: collected, and told a few messages for all."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Iterable, Iterator

from kvmarket.registry.protocol.messages import Change, OfferBlocks, PoolJoined, Promise, Retire, Snapshot
from kvmarket.registry.space.feed import Feed

LINGER_SECONDS = 0.005  # so long retirements wait for something that others wait for: their generations say it already
CHANGES_BYTES = 1 << 18  # in one message, some: an engine decodes it on its scheduling thread


class Stream:
    """Collects changes and tells them in order to everybody's feed."""

    def __init__(self) -> None:
        """Nobody listens yet."""
        self.feeds: dict[Hashable, Feed] = {}
        self._waiting: list[tuple[Change, Hashable]] = []
        self._due = math.inf  # when what waits must go out

    def add(self, change: Change, by: Hashable = None) -> None:
        """Something has changed; it goes out with the next `flush`, but not to the listener that it came `by`."""
        self._waiting.append((change, by))
        lingers = isinstance(change, Retire)
        self._due = min(self._due, time.monotonic() + (LINGER_SECONDS if lingers else 0.0))

    def due(self) -> float:
        """In how many seconds `flush` should be called; not positive: now."""
        return self._due - time.monotonic()

    def flush(self) -> None:
        """Tell what was added to all who listen. Costs some us, and each message once per listener."""
        waiting, self._waiting, self._due = self._waiting, [], math.inf
        for listener, feed in self.feeds.items() if waiting else ():
            for part in _parts(change for change, by in waiting if by != listener):
                feed.tell(*part)


def _parts(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Cut `changes` into parts of some `CHANGES_BYTES` each."""
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
    """About how long a change is in a message."""
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
