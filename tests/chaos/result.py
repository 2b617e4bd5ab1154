"""The result of a chaos run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from tests.chaos.tally import COUNTS


@dataclass
class Result:
    """Counts, and everything that went wrong: `failures` is empty after a good run."""

    plan: dict[str, object]
    seconds: float = 0.0
    incarnations: int = 0
    restarts: int = 0
    kills: int = 0
    stops: int = 0
    service_kills: int = 0
    service_stops: int = 0
    done: Counter[str] = field(default_factory=Counter)  # sums of what the engines tallied
    counters: Counter[str] = field(default_factory=Counter)  # sums of kvmarket's own
    hangs: list[str] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)  # kept engines whose leaks nobody could have seen
    wrong: list[str] = field(default_factory=list)  # wrong bytes and refusals: the engines' logs
    held: dict[str, object] = field(default_factory=dict)  # what kept engines held after warm-up and at the end

    @property
    def failures(self) -> list[str]:
        """A text for each thing that went wrong."""
        corrupt = [
            f"{count} x {name}"
            for name, count in self.counters.items()
            if name.startswith("fetch_corrupt") or "CUDA" in name
        ]
        missing = [] if self.done["verified"] else ["not one block was fetched"]
        unseen = [f"{name} was sampled too rarely for a leak to show" for name in self.unmeasured]
        return [*self.wrong, *self.hangs, *self.exceptions, *self.leaks, *corrupt, *missing, *unseen]

    def json(self) -> str:
        """Everything on one line; of the longest texts only their number."""
        found = asdict(self) | {"done": self.done, "counters": self.counters}
        for name in ("hangs", "exceptions", "wrong"):
            found[name] = len(found[name])
        found["wrong"] = self.done["wrong"]
        return json.dumps(found)

    def table(self) -> str:
        """Everything as a table."""
        rows: dict[str, object] = {"seconds": round(self.seconds, 1), "fetches": self.done["fetches"]}
        rows |= {"fetches/s": round(self.done["fetches"] / max(self.seconds, 1e-9))}
        rows |= {"blocks fetched": self.done["asked"], "blocks verified": self.done["verified"]}
        rows |= {"WRONG BLOCKS": self.done["wrong"], "kills": self.kills, "service kills": self.service_kills}
        rows |= {"REFUSED": self.done["refused"]}
        rows |= {"stops": self.stops, "restarts": self.restarts, "HANGS": len(self.hangs)}
        rows |= {"EXCEPTIONS": len(self.exceptions), "LEAKS": len(self.leaks)}
        rows |= {
            name: self.done[name] for name in COUNTS if name not in ("fetches", "asked", "verified", "wrong", "refused")
        }
        lines = [f"{name:18}{value:>14}" for name, value in rows.items()]
        lines += [f"{count:>14}  {name}" for name, count in sorted(self.counters.items())]
        for who, (early, late) in self.held.items():  # type: ignore[misc]
            lines.append(f"{who}: after warm-up {_dict(early)}")
            lines.append(f"{'':{len(who)}}  at the end    {_dict(late)}")
        return "\n".join(lines)


def _dict(held: object) -> str:
    return ", ".join(f"{name} {value}" for name, value in held._asdict().items())  # type: ignore[attr-defined]
