"""The three modes of ``kvmarket top``: print once, compare facts once, or follow until interrupted."""

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
    """Show the state of a market on the screen, every `interval` seconds until interrupted.

    `once`: print it once. `why`: print once the facts by which its spaces differ. Both raise AddressError if no service
    runs; without them the command waits for a service, also after one has ended.
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
    """The present state of the market, or a text that says that there is none. Raises no RegistryError for that."""
    try:
        shown: RenderableType = screen_of(place, ask_status(place))
    except RegistryError as error:
        shown = Group(Text(f"waiting for a market at {place}", "yellow"), Text(str(error)))
    return Group(shown, *map(Text, said_of_others(place)))


def _asked(place: Address, *, facts: bool = False) -> Status:
    """The state of the market. The text of an AddressError also names other running markets."""
    try:
        return ask_status(place, facts=facts)
    except (AddressError, VersionError) as error:
        raise type(error)("; ".join([str(error), *said_of_others(place)])) from error
