"""The stream of one space, from the service to every engine in it, of all that the others say.

Numbered for each engine, so that it sees what it missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from kvmarket.registry.messages import Change, Changes, OfferBlocks, PoolJoined, Promise, Reply, Retire, Snapshot

AGAIN_SECONDS = 0.2  # after which those who are behind are told again
LINGER_SECONDS = 0.005  # so long retirements wait for something that others wait for: their generations say it already
CHANGES_BYTES = 1 << 18  # in one message, some: an engine decodes it on its scheduling thread
SNAPSHOT_BYTES = 1 << 20

Send = Callable[[Any, Reply], bool]


class Stream:
    """Collects changes and sends them in order, a few messages for all of them.

    A connection that does not keep up misses some: it is told the number as soon as it reads again, and then asks for
    a snapshot. `send` sends one reply to one connection, without waiting, and says whether it went out.
    """

    def __init__(self) -> None:
        """Nobody listens yet."""
        self.routes: dict[Hashable, int] = {}  # the number of the last message to each, received or missed
        self._behind: set[Hashable] = set()
        self._waiting: list[tuple[Change, Hashable]] = []
        self._due = math.inf  # when what waits must go out

    def add(self, change: Change, by: Hashable = None) -> None:
        """Something has changed; it goes out with the next `flush`, but not to the connection that it came `by`."""
        self._waiting.append((change, by))
        lingers = isinstance(change, Retire)
        self._due = min(self._due, time.monotonic() + (LINGER_SECONDS if lingers else 0.0))

    def due(self) -> float:
        """In how many seconds `flush` should be called; not positive: now."""
        return self._due - time.monotonic()

    def flush(self, send: Send) -> None:
        """Send what was added to all who listen. Costs some us, and each message once per connection."""
        for route in list(self._behind):
            if send(route, Changes(self.routes[route], ())):
                self._behind.discard(route)
        waiting, self._waiting, self._due = self._waiting, [], math.inf
        for route in self.routes if waiting else ():
            for part, _ in _parts((change for change, by in waiting if by != route), CHANGES_BYTES):
                self.routes[route] += 1
                if route not in self._behind and not send(route, Changes(self.routes[route], part)):
                    self._behind.add(route)
        if self._behind:
            self._due = time.monotonic() + AGAIN_SECONDS

    def welcome(self, route: Hashable, standing: Iterable[Change], send: Send) -> None:
        """Send all that stands, which has what was added so far in it, to one who listens from here on."""
        self.flush(send)
        number = self.routes.setdefault(route, 0)
        self._behind.discard(route)
        first = True
        for part, last in _parts(standing, SNAPSHOT_BYTES):
            if not send(route, Snapshot(number, first, last, part)):
                self._behind.add(route)
                self._due = min(self._due, time.monotonic() + AGAIN_SECONDS)
                return
            first = False

    def forget(self, route: Hashable) -> None:
        """A connection listens no longer."""
        self.routes.pop(route, None)
        self._behind.discard(route)


def _parts(changes: Iterable[Change], nbytes: int) -> Iterator[tuple[tuple[Change, ...], bool]]:
    """Cut `changes` into parts of some `nbytes` each, and say of each whether it is the last one."""
    part: list[Change] = []
    size = 0
    for change in changes:
        if size >= nbytes:
            yield tuple(part), False
            part, size = [], 0
        part.append(change)
        size += _bytes(change)
    if part:
        yield tuple(part), True


def _bytes(change: Change) -> int:
    """About how long a change is in a message."""
    match change:
        case OfferBlocks():
            return 128 + len(change.tokens) + 3 * len(change.slots)
        case Promise():
            return 128 + len(change.tokens)
        case Retire():
            return 128 + len(change.slots or b"")
        case PoolJoined():
            return 128 + len(change.record.description)
        case _:
            return 128
