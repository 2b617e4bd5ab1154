"""``kvmarket doctor``: collects all findings and prints them as a table or as JSON."""

from __future__ import annotations

import msgspec
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.gpus import devices_here, gpus, tables
from kvmarket.cli.doctor.machine import machine
from kvmarket.cli.doctor.rates import Measured, measure_pairs, table_of_rates
from kvmarket.cli.doctor.self_test import self_test

WHAT_WIDTH = 30  # columns
_LEVELS = {"ok": "green", "note": "yellow", "bad": "red"}


class Report(msgspec.Struct, frozen=True):
    """The whole output; `measured` is empty unless measuring was asked for."""

    findings: list[Finding]
    measured: list[Measured]


def doctor(*, as_json: bool, measure: bool = False) -> int:
    """Check everything, with `measure` also measure all ways between the GPUs, and print the report.

    Returns the exit status: 1 if a finding is "bad", else 0. `as_json`: print one JSON document, a `Report`, and
    nothing else on stdout. Costs as `examine`.
    """
    report = examine(measure=measure)
    console = Console()
    if as_json:
        console.print_json(msgspec.json.encode(report).decode(), highlight=False)
    else:
        console.print(_table(report.findings), *map(table_of_rates, report.measured))
    return int(any(finding.level == "bad" for finding in report.findings))


def examine(*, measure: bool) -> Report:
    """Make the report. Takes about ten seconds for each GPU, and with `measure` for each pair of them."""
    results = list(measure_pairs()) if measure else []
    measured = [result for result in results if isinstance(result, Measured)]
    findings = [*machine(), *gpus(), *self_test(devices_here())]
    findings += [result for result in results if isinstance(result, Finding)]
    return Report([*findings, *tables()], measured)


def _table(findings: list[Finding]) -> Table:
    """One row a finding, with the advice below what was found. No word is broken at 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("what", max_width=WHAT_WIDTH, overflow="fold")
    table.add_column("found, and what to do", overflow="fold")
    for finding in findings:
        found = [Text(finding.found, _LEVELS[finding.level])]
        found += [Text(f"to do: {finding.advice}")] if finding.advice else []
        table.add_row(Text(finding.what), Group(*found))
    return table
