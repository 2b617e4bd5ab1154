"""The plan of a chaos run: its events and their moments, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A run of `seconds`, or of up to three times as long until `fetches` are reached; longer until leaks can be
    seen.

    `engines` run at a time. `keep` of them are never killed; the first of these also never leaves the market
    itself. `kills` of engines, `stops` (SIGSTOP, later SIGCONT) and `service_kills` happen at random moments. An
    engine that finishes no step for `hang_seconds` hangs. `lenders` run besides (see lender.py), and the first of
    them is kept. `fault`: what one kept engine does wrong, see faults.py. `service_stops`: how often the service is
    stopped for a while. `loss`: the share of messages that engines lose, in each direction. `branches` and
    `tenants` are those of one more engine, from which nobody fetches, see crowd.py.
    """

    seed: int = 1
    seconds: float = 10.0
    engines: int = 5
    lenders: int = 0
    keep: int = 2
    kills: int = 20
    stops: int = 10
    service_kills: int = 1
    service_stops: int = 0
    loss: float = 0.0
    branches: int = 0
    tenants: int = 0
    fetches: int = 0
    device: str = "cpu"
    hang_seconds: float = 20.0
    fault: str = ""

    def events(self) -> list[tuple[float, str]]:
        """(seconds after the start, event) for all events, the latest first."""
        chance = random.Random(self.seed)
        counts = {"kill": self.kills, "stop": self.stops, "kill_service": self.service_kills}
        counts["stop_service"] = self.service_stops
        drawn = [(chance.uniform(0, self.seconds), what) for what, count in counts.items() for _ in range(count)]
        return sorted(drawn, reverse=True)
