"""``python -m tests.chaos``: a run of any length. Prints what went wrong, and exits with 1 if anything did."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from tests.chaos.driver import Driver
from tests.chaos.faults import FAULTS
from tests.chaos.plan import Plan

MOST_SHOWN = 5


def main() -> int:
    """Run; print a table, the failures, and everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=Plan.__doc__)
    for option in fields(Plan):
        kind, name = type(option.default), f"--{option.name.replace('_', '-')}"
        choices = ["", *FAULTS] if option.name == "fault" else None
        parser.add_argument(name, type=kind, default=option.default, choices=choices, help=f"{option.default!r}")
    plan = Plan(**vars(parser.parse_args()))
    result = Driver(plan, lambda line: print(line, flush=True)).run()
    print(result.table())
    for failure in result.failures[:MOST_SHOWN]:
        print(f"\nFAILED, {plan}: {failure[:8000]}")
    if len(result.failures) > MOST_SHOWN:
        print(f"\nand {len(result.failures) - MOST_SHOWN} more")
    print(result.json())
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
