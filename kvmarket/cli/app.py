"""The commands of ``kvmarket``, one module each. A command's imports are made only when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvmarket.errors import KVMarketError, MisuseError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="KV blocks of any engine of the node, for every other one."
)
AddressOption = Annotated[
    str | None, typer.Option(help="Socket of the market, or a name; not needed for the default one.")
]


@app.command()
def serve(address: AddressOption = None) -> None:
    """Serve a market in the foreground, until interrupted. Engines start one by themselves; this is for supervisors."""
    from kvmarket.cli.serve import serve as run

    run(address)


@app.command()
def lend(
    address: AddressOption = None,
    gpu: Annotated[
        int | None, typer.Option(min=0, help="Number of the GPU that lends, and copies to the host.")
    ] = None,
    gb: Annotated[float | None, typer.Option(min=0.0, help="GB of that GPU to lend, to engines on GPUs.")] = None,
    host_gb: Annotated[float | None, typer.Option(min=0.0, help="GB of host memory to lend.")] = None,
    keep_free: Annotated[float, typer.Option(min=0.0, help="GB that stay free there for others.")] = 0.0,
    resize: Annotated[
        bool, typer.Option("--resize", help="Have a lender that runs already lend so much from now on; 0: none.")
    ] = False,
    lender: Annotated[
        int | None, typer.Option(min=1, metavar="PID", help="With --resize: which one, if several run.")
    ] = None,
) -> None:
    """Lend memory: keep what engines of the market compute, for all of them, until interrupted.

    SIGUSR1 gives all of it back at once, SIGUSR2 lends it again; --resize, from another terminal, takes a part of it
    back, or lends more: memory that it does not name stays as it is.
    """
    if resize:
        from kvmarket.cli.resize import resize as ask

        return ask(address, gpu, gb, host_gb, keep_free, lender)
    if lender is not None:
        raise MisuseError(f"--lender {lender} without --resize; add --resize to change what it lends")
    from kvmarket.cli.signals import hold

    hold()
    from kvmarket.cli.lend import lend as run

    run(address, gpu, gb, host_gb, keep_free)


@app.command()
def top(
    address: AddressOption = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option(help="Print it once; an error where no service lives.")] = False,
    why: Annotated[bool, typer.Option(help="Print, once, which facts keep engines apart.")] = False,
) -> None:
    """Show the engines of a market and their offers, until interrupted. Waits while there is no market."""
    from kvmarket.cli.top import top as run

    run(address, interval, once=once, why=why)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option(help="Print one JSON document instead of tables.")] = False,
    measure: Annotated[bool, typer.Option(help="Measure every way between all GPUs, and keep the tables.")] = False,
) -> None:
    """Say what this machine can share, what it cannot, and what to do about it.

    Exits with 1 if something must be repaired.
    """
    from kvmarket.cli.doctor.doctor import doctor as run

    raise typer.Exit(run(as_json=json, measure=measure))


@app.command()
def demo(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    tokens: int = 0,
    lend: Annotated[bool, typer.Option(help="Kill the first engine before that: a lender keeps its blocks.")] = False,
) -> None:
    """Run two engines with one prefill: the second engine fetches the prefix from the first one's pool.

    Exits with 1 unless the outputs are identical.
    """
    from kvmarket.cli.demo import demo as run

    raise typer.Exit(run(device, tokens, lend=lend))


def run() -> None:
    """Run the command line. An error of kvmarket is printed as one line, without a traceback, and exits with 2."""
    try:
        app()
    except KVMarketError as error:
        line = Text.assemble((type(error).__name__, "red"), f": {error}")
        Console(stderr=True).print(line, soft_wrap=True)
        sys.exit(2)
