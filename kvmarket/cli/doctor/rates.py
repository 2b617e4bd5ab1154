"""Measure the rates of every pair of GPUs, write the tables for the markets of this user, and show them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.gpus import devices_here, pairs
from kvmarket.cli.doctor.measure import CEILING, SIZES, cases_here, measure, sizes_for
from kvmarket.errors import KVMarketError
from kvmarket.layout.paged import SlotArray
from kvmarket.transport.cuda_ipc import device_uuid
from kvmarket.ways import Mover, choice
from kvmarket.ways.choice import Forced, Rate


class Measured(msgspec.Struct, frozen=True):
    """The measured rates of one pair of GPUs; `ceiling`: of one contiguous copy of as many bytes."""

    reader: str
    owner: str
    rates: tuple[Rate, ...]
    ceiling: tuple[Rate, ...]


def measure_pairs() -> Iterator[Measured | Finding]:
    """Measure every pair of GPUs that has peer access, with a progress bar on stderr, and write the tables.

    Yields the rates of each pair and a finding that names the file, or says what went wrong.
    """
    if not devices_here():
        unmeasured = "no GPU: the rates of pull, copy and staged cannot be measured"
        yield Finding("measuring", "note", unmeasured, "nothing on this machine needs them; run it where the GPUs are")
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        todo, steps = pairs(), (2 * len(cases_here()) + 1) * len(SIZES)
        bar = progress.add_task("", total=len(todo) * steps)
        for number, (reader, owner) in enumerate(todo):
            progress.update(bar, description=f"{reader} reads {owner}", completed=number * steps)
            try:
                found = []
                for rate in measure(reader, owner, sizes_for(reader, owner), _gpu_mover, cases_here()):
                    found.append(rate)
                    progress.advance(bar)
                yield from _kept(reader, owner, found)
            except (KVMarketError, RuntimeError) as error:
                trouble = f"{type(error).__name__}: {error}"
                yield Finding(f"measuring {reader} reading {owner}", "bad", trouble, "mend this, then measure again")
            torch.cuda.empty_cache()  # else cached memory would not count as free for the next pair


def _kept(reader: torch.device, owner: torch.device, found: list[Rate]) -> Iterator[Measured | Finding]:
    """Write the table of a pair, if there are rates; yield the rates and a finding."""
    what = f"measuring {reader} reading {owner}"
    rates = tuple(rate for rate in found if rate.way != CEILING)
    if not rates:
        yield Finding(
            what, "note", "2 MiB are more than 40 % of what is free on a GPU", "measure while no engine fills it"
        )
        return
    yield Measured(str(reader), str(owner), rates, tuple(rate for rate in found if rate.way == CEILING))
    try:
        path = choice.save(choice.Table(device_uuid(reader), device_uuid(owner), rates))
    except OSError as error:
        yield Finding(what, "bad", f"the table cannot be kept: {error}", "give XDG_CACHE_HOME a folder to write to")
    else:
        yield Finding(what, "ok", f"{len(rates)} rates kept in {path}")


def _gpu_mover(own: SlotArray, way: str) -> Mover:
    from kvmarket.ways.gpu.mover import GpuMover  # needs Triton, which a machine without GPUs may lack

    return GpuMover(own, choice=Forced(way))


def table_of_rates(measured: Measured) -> Table:
    """A table with one column per size, and one row per way, fragment size and busy or not; the ceiling comes last."""
    every = (*measured.rates, *measured.ceiling)
    sizes = sorted({rate.nbytes for rate in every})
    table = Table(title=f"{measured.reader} reads {measured.owner}, GB/s")
    table.add_column("way")
    table.add_column("fragments", justify="right")
    for size in sizes:
        table.add_column(f"{size >> 20} MiB", justify="right")
    rows: dict[tuple[str, str], dict[int, float]] = {}
    for rate in every:
        fragment = "" if rate.way == CEILING else f"{rate.fragment >> 10} KiB"
        way = f"{rate.way}, two under way" if rate.busy else rate.way
        rows.setdefault((way, fragment), {})[rate.nbytes] = rate.rate
    for (way, fragment), reached in rows.items():
        values = (f"{reached[size] / 1e9:.1f}" if size in reached else "" for size in sizes)
        table.add_row("one contiguous copy" if way == CEILING else way, fragment, *values)
    return table
