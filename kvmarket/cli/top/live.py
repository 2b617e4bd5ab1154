"""The three ways in which ``kvmarket top`` runs: once, as a comparison of facts, or until it is interrupted."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from kvmarket.cli.top.screen import screen_of
from kvmarket.cli.top.why import comparison_of
from kvmarket.errors import AddressError, RegistryError, VersionError
from kvmarket.registry.client.asking import ask_status
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.neighbours import said_of_others
from kvmarket.registry.protocol.status import Status


def top(address: str | None, interval: float, *, once: bool, why: bool = False) -> None:
    """Print the market's state once, with `why` the facts that keep engines apart, or keep the state on the screen.

    Once and with `why`, raises AddressError when no service lives there, else waits for one, and for the next one when
    it has ended. `interval`: seconds between two looks.
    """
    place, console = Address(address), Console()
    if why:
        console.print(Group(comparison_of(_asked(place, facts=True)), *map(Text, said_of_others(place))))
    elif once:
        console.print(Group(screen_of(place, _asked(place)), *map(Text, said_of_others(place))))
    else:
        _follow(place, interval, console)


def _follow(place: Address, interval: float, console: Console) -> None:
    """Keep the state of the market on the screen until interrupted."""
    try:
        with Live(_look(place), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(_look(place), refresh=True)
    except KeyboardInterrupt:
        return


def _look(place: Address) -> RenderableType:
    """The state of the market now, or what is waited for; nothing that a market does ends the look."""
    try:
        shown: RenderableType = screen_of(place, ask_status(place))
    except RegistryError as error:
        shown = Group(Text(f"waiting for a market at {place}", "yellow"), Text(str(error)))
    return Group(shown, *map(Text, said_of_others(place)))


def _asked(place: Address, *, facts: bool = False) -> Status:
    """The state of the market. Where it cannot be known, the error also says which other markets live near."""
    try:
        return ask_status(place, facts=facts)
    except (AddressError, VersionError) as error:
        raise type(error)("; ".join([str(error), *said_of_others(place)])) from error
