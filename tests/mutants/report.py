"""The results of a campaign: survivors as diffs, a table by module, and everything as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.mutants.campaign import Verdict
from tests.mutants.mutant import Key, Mutant

OUTCOMES = ("killed", "hang", "harmless", "survived")


def shown(mutant: Mutant) -> str:
    """The mutant as a diff."""
    lines = [f"{mutant.id}  in {mutant.key.function or 'the module'}"]
    lines += [f"    - {line}" for line in mutant.key.statement.splitlines()]
    lines += [f"    + {line}" for line in mutant.key.becomes.splitlines()]
    return "\n".join(lines)


def judged(verdict: Verdict, harmless: dict[Key, str]) -> str:
    """The outcome; that of a survivor that is known to be harmless is "harmless"."""
    return "harmless" if verdict.outcome == "survived" and verdict.mutant.key in harmless else verdict.outcome


def table(verdicts: Iterable[Verdict], harmless: dict[Key, str]) -> str:
    """A table: how many mutants of each module had which outcome."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        counts.setdefault(verdict.mutant.key.module, Counter())[judged(verdict, harmless)] += 1
    total = sum(counts.values(), Counter())
    rows = [("", "mutants", *OUTCOMES)]
    for module, count in [*sorted(counts.items()), ("all", total)]:
        rows.append((module, str(count.total()), *(str(count[outcome]) for outcome in OUTCOMES)))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows)


def write(path: Path, verdicts: Sequence[Verdict], harmless: dict[Key, str], facts: dict[str, Any]) -> None:
    """Write a JSON file: the `facts` of the run, and one row per mutant in the order of ids."""
    rows = []
    for verdict in sorted(verdicts, key=lambda verdict: verdict.mutant.id):
        row = {"id": verdict.mutant.id, **verdict.mutant.key._asdict(), "outcome": judged(verdict, harmless)}
        row |= {"by": verdict.by, "seconds": round(verdict.seconds, 2)}
        rows.append(row | ({"reason": harmless[verdict.mutant.key]} if row["outcome"] == "harmless" else {}))
    counts = Counter(row["outcome"] for row in rows)
    text = json.dumps({**facts, "counts": {o: counts[o] for o in OUTCOMES}, "mutants": rows}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
