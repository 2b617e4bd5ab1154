"""Sequence numbers of `Changes`: the receiver notices when it missed a message. No sockets.

A doubled or late message is ignored. After a missing number all messages are ignored until a snapshot begins, for which
`Heard.wanted` asks again and again.
"""

from __future__ import annotations

import math

from kvmarket.registry.protocol.messages import Again, Change, Changes

ASK_SECONDS = 0.2  # until a snapshot that has not begun is asked for again


class Told:
    """The sender's side: numbers the messages."""

    def __init__(self) -> None:
        self.last = 0  # the number of the last message
        self.snapshot = 0  # the number of the message with which the last snapshot began

    def changes(self, changes: tuple[Change, ...], *, snapshot: bool = False) -> Changes:
        """Make the next message. If it cannot be sent, the sender must begin a snapshot."""
        self.last += 1
        if snapshot:
            self.snapshot = self.last
        return Changes(self.last, changes, snapshot)

    def mark(self) -> Changes:
        """Make a message that repeats the last number: the receiver then notices the loss of the last message too."""
        return Changes(self.last)

    def answers(self, again: Again) -> bool:
        """Whether a snapshot has already begun after the last message that the asking side had seen."""
        return self.snapshot > again.seen


class Heard:
    """The receiver's side: decides which messages to accept."""

    def __init__(self, now: float) -> None:
        """Ignore all messages until the first snapshot begins, which comes unasked. `now`: by time.monotonic."""
        self.broken = True  # whether a message was missed, and no snapshot has begun since
        self._last = self._seen = 0  # number accepted last, highest number seen
        self._ask_at = now + ASK_SECONDS

    def accept(self, message: Changes) -> bool:
        """Whether to apply these changes: they follow the last accepted message, or begin a snapshot. Costs < 1 us."""
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
        """The request for a snapshot, if one is due: at once after a gap, then every `ASK_SECONDS`; else None."""
        if not self.broken or now < self._ask_at:
            return None
        self._ask_at = now + ASK_SECONDS
        return Again(self._seen)

    def _break(self) -> None:
        if not self.broken:
            self.broken, self._ask_at = True, -math.inf
