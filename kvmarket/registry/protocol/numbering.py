"""Numbers on what one side of a connection tells the other, so that nothing is missed unseen. No sockets.

A number that is missed, doubled or late changes nothing: from a gap on, nothing is heeded until a snapshot begins, and
`Heard.wanted` asks for one until it does.
"""

from __future__ import annotations

import math

from kvmarket.registry.protocol.messages import Again, Change, Changes

ASK_SECONDS = 0.2  # after which a snapshot that has not begun is asked for again


class Told:
    """The numbers of what is told."""

    def __init__(self) -> None:
        self.last = 0  # the number of the last message
        self.snapshot = 0  # and of the one with which the last snapshot began

    def changes(self, changes: tuple[Change, ...], *, snapshot: bool = False) -> Changes:
        """The next message; where it cannot be sent, a snapshot must follow."""
        self.last += 1
        if snapshot:
            self.snapshot = self.last
        return Changes(self.last, changes, snapshot)

    def mark(self) -> Changes:
        """The number of the last message once more, so that the loss of that one is seen too."""
        return Changes(self.last)

    def answers(self, again: Again) -> bool:
        """Whether what is asked for has been begun since: by a message behind all that the other side had seen."""
        return self.snapshot > again.seen


class Heard:
    """What is heard: which messages count."""

    def __init__(self, now: float) -> None:
        """Nothing counts before a snapshot begins, which is expected."""
        self.broken = True  # whether something was missed, and no snapshot has begun since
        self._last = self._seen = 0  # number heard last, highest number seen
        self._ask_at = now + ASK_SECONDS

    def accept(self, message: Changes) -> bool:
        """Whether these changes follow what was heard last. Costs less than 1 us."""
        self._seen = max(self._seen, message.sequence)
        if message.snapshot and message.sequence > self._last:
            self.broken = False
        elif message.empty:
            if message.sequence > self._last:
                self._break()
            return False
        elif message.sequence > self._last + 1:
            self._break()
            return False
        elif message.sequence <= self._last or self.broken:
            return False
        self._last = message.sequence
        return True

    def wanted(self, now: float) -> Again | None:
        """The request for a snapshot, where one is due: at once behind a gap, then every `ASK_SECONDS`."""
        if not self.broken or now < self._ask_at:
            return None
        self._ask_at = now + ASK_SECONDS
        return Again(self._seen)

    def _break(self) -> None:
        if not self.broken:
            self.broken, self._ask_at = True, -math.inf
