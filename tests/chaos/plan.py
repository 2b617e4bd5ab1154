"""What a run of the chaos will do, and when: a function of its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A run of `seconds`, or longer until `fetches` are reached (at most three times as long).

    `engines` at once, of which `keep` are never killed: the first of them also never leaves the market by itself.
    `kills` of engines, `stops` (SIGSTOP, later SIGCONT) and `service_kills` happen at random moments. An engine that
    finishes no step for `hang_seconds` hangs. `fault`: what one kept engine does wrong, see faults.py. `service_stops`:
    so often the service is stopped for a while. `loss`: the share of messages that engines lose, both ways. `branches`
    and `tenants`: of one more engine, which nobody asks for anything, see crowd.py.
    """

    seed: int = 1
    seconds: float = 10.0
    engines: int = 5
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
        """Moments, in seconds after the start, and what happens then; later moments first."""
        chance = random.Random(self.seed)
        counts = {"kill": self.kills, "stop": self.stops, "kill_service": self.service_kills}
        counts["stop_service"] = self.service_stops
        drawn = [(chance.uniform(0, self.seconds), what) for what, count in counts.items() for _ in range(count)]
        return sorted(drawn, reverse=True)
