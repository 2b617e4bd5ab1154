"""How long the watching thread holds the replica at a time, and leaves it to others in between."""

from __future__ import annotations

TURN_SECONDS = 500e-6  # at a time: what comes at once goes in at once
TURN_SHARE, LONGEST_TURN = 0.05, 5e-3  # while nobody calls: of the time that the replica has been behind; the bound
NAP_SECONDS = 20e-6  # in between
SHORT_SECONDS = 50e-6  # a turn that took no longer needs no nap behind it
STEP_SECONDS = 300e-6  # instead, for an engine that steps: all calls of a step, which then waits for one turn at most
STEPPING_SECONDS = 0.5  # so long behind a call the engine steps


class Turns:
    """Short turns and long naps while an engine steps; while it does not, turns that grow until all is put in."""

    def __init__(self) -> None:
        """Nothing is behind, and nobody has called."""
        self._behind_since: float | None = None
        self._called_at = 0.0

    def called(self, now: float) -> None:
        """The engine calls; from any thread."""
        self._called_at = now

    def next(self, now: float) -> tuple[float, float]:
        """Seconds of the turn that begins `now`, and of the nap behind it."""
        since = self._behind_since = now if self._behind_since is None else self._behind_since
        if now - self._called_at < STEPPING_SECONDS:
            return TURN_SECONDS, STEP_SECONDS
        return min(max(TURN_SECONDS, TURN_SHARE * (now - since)), LONGEST_TURN), NAP_SECONDS

    def done(self) -> None:
        """All that came is put in."""
        self._behind_since = None
