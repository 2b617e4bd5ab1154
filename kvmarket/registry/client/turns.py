"""How long the watching thread holds the replica's lock at a time, and how long it pauses between."""

from __future__ import annotations

TURN_SECONDS = 500e-6  # a turn while the engine steps: enough for the changes that usually come together
TURN_SHARE, LONGEST_TURN = 0.05, 5e-3  # else: a turn as a share of the time that the replica is behind; its bound
NAP_SECONDS = 20e-6  # the pause between turns while the engine does not step
SHORT_SECONDS = 50e-6  # a turn that took no longer needs no pause after it
STEP_SECONDS = 300e-6  # the pause while the engine steps: all calls of one step fit in, so a step waits for one turn
STEPPING_SECONDS = 0.5  # the engine counts as stepping for so long after a call


class Turns:
    """Short turns and long pauses while an engine steps; else turns that grow until the replica is current."""

    def __init__(self) -> None:
        """Start with a current replica and without a call."""
        self._behind_since: float | None = None
        self._called_at = 0.0

    def called(self, now: float) -> None:
        """Note that the engine calls the client. Thread-safe."""
        self._called_at = now

    def next(self, now: float) -> tuple[float, float]:
        """Seconds of the turn that begins `now`, and of the pause after it."""
        since = self._behind_since = now if self._behind_since is None else self._behind_since
        if now - self._called_at < STEPPING_SECONDS:
            return TURN_SECONDS, STEP_SECONDS
        return min(max(TURN_SECONDS, TURN_SHARE * (now - since)), LONGEST_TURN), NAP_SECONDS

    def done(self) -> None:
        """Note that all received changes are in the replica."""
        self._behind_since = None
