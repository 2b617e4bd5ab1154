"""``python -m tests.mutants``: choose mutants, run them, print the survivors. See the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import harmless, report
from tests.mutants.campaign import Campaign, Verdict
from tests.mutants.mutant import Mutant, mutants
from tests.mutants.table import Table, TableError, changed_lines

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # the same on every machine
EVERY = 25  # mutants between two lines of progress


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the mutants instead of running them")
    parser.add_argument("--only", action="append", default=[], metavar="WHAT", help="those whose id contains WHAT")
    parser.add_argument("--since", metavar="REV", help="those of statements changed since REV, uncommitted ones too")
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, of each module in proportion")
    parser.add_argument("--seed", type=int, default=1, help="which sample")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long a mutant may take at least")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write what came of each to PATH, as JSON")
    parser.add_argument("--toml", action="store_true", help="print survivors as harmless.toml would name them")
    parser.add_argument("--root", type=Path, default=HERE.parent.parent, help="the tree that modules and tests are of")
    parser.add_argument("--table", type=Path, default=HERE / "targets.toml")
    parser.add_argument("--harmless", type=Path, default=HERE / "harmless.toml")
    return parser.parse_args(arguments)


def chosen(every: list[Mutant], given: argparse.Namespace) -> list[Mutant]:
    """The mutants that the command line selects, in the order of the table and the source."""
    some = [m for m in every if not given.only or any(what in m.id for what in given.only)]
    if given.since is not None:
        changed = changed_lines(given.root, given.since)
        some = [m for m in some if not changed.get(m.key.module, set()).isdisjoint(m.lines)]
    if given.sample is None or given.sample >= len(some):
        return some
    modules: dict[str, list[Mutant]] = {}
    for mutant in some:
        modules.setdefault(mutant.key.module, []).append(mutant)
    taken: set[str] = set()
    left, wanted = len(some), given.sample
    for members in modules.values():
        share = round(wanted * len(members) / left)
        taken.update(m.id for m in sorted(members, key=lambda m: m.rank(given.seed))[:share])
        left, wanted = left - len(members), wanted - share
    return [m for m in some if m.id in taken]


def run(campaign: Campaign, mutants: list[Mutant], reasons: harmless.Reasons, toml: bool) -> list[Verdict]:
    """Run the mutants; print each survivor at once (as `toml`, or as a diff), and the progress."""
    os.environ.update(ENVIRONMENT)
    campaign.prepare(list(dict.fromkeys(mutant.key.module for mutant in mutants)))
    verdicts: list[Verdict] = []
    begun = time.monotonic()
    _say(f"running {len(mutants)} mutants")
    for verdict in campaign.run(mutants):
        verdicts.append(verdict)
        if report.judged(verdict, reasons) == "survived":
            shown = harmless.entry(verdict.mutant.key) if toml else report.shown(verdict.mutant)
            print(shown, end="\n\n", flush=True)
        if len(verdicts) % EVERY == 0:
            left = (time.monotonic() - begun) / len(verdicts) * (len(mutants) - len(verdicts))
            _say(f"{len(verdicts)} of {len(mutants)}; {left / 60:.0f} minutes to go")
    return verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print. Returns 1 if a survivor is not known to be harmless, 2 if nothing could be run."""
    given = options(arguments)
    given.root = given.root.resolve()
    begun = time.monotonic()
    try:
        table = Table.read(given.table, given.root)
        reasons = harmless.read(given.harmless)
        sources = {module: (given.root / module).read_text(encoding="utf-8") for module in table.tests}
        every = [mutant for module, source in sources.items() for mutant in mutants(module, source)]
        some = chosen(every, given)
        if given.list:
            print("\n".join(map(report.shown, some)))
            return 0
        campaign = Campaign(given.root, table, sources, given.jobs, given.seconds, _say)
        verdicts = run(campaign, some, reasons, given.toml) if some else []
    except TableError as error:
        _say(str(error))
        return 2
    bad = [v for v in verdicts if report.judged(v, reasons) == "survived"]
    stale = harmless.stale(reasons, (m.key for m in every))
    for key in stale:
        entry = harmless.entry(key, reasons[key])
        print(f"{given.harmless.name} names a mutant that is no more; take it out:\n{entry}\n")
    for verdict in verdicts:
        if verdict.mutant.key in reasons and verdict.outcome != "survived":
            print(f"called harmless, but {verdict.outcome} {verdict.by}: {report.shown(verdict.mutant)}")
    seconds = time.monotonic() - begun
    print(report.table(verdicts, reasons))
    print(f"{len(verdicts)} of {len(every)} mutants in {seconds / 60:.1f} minutes; {len(bad)} survived unexplained")
    if given.write is not None:
        report.write(given.write, verdicts, reasons, {"seconds": round(seconds, 1), "jobs": given.jobs})
    return 1 if bad or stale else 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # an orderly exit would print leak warnings of libraries that only tests use
