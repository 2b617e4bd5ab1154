"""``kvmarket top``: who is in a market and what is on offer."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kvmarket.errors import AddressError, MessageError
from kvmarket.registry.client.connection import KNOCK_SECONDS
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import AskStatus, Status, pack_message, unpack_reply
from kvmarket.registry.protocol.packets import dial

ANSWER_SECONDS = 2.0


def top(address: str | None, interval: float, *, once: bool) -> None:
    """Print the market's state once, or keep it on the screen. Raises AddressError when no service lives there."""
    place = Address(address)
    console = Console()
    if once:
        console.print(_table(ask_status(place)))
        return
    with Live(_table(ask_status(place)), console=console) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(_table(ask_status(place)))
        except KeyboardInterrupt:
            return


def ask_status(place: Address) -> Status:
    """Ask the service of `place`.

    Raises AddressError when there is none or it does not answer within two seconds, VersionError where it speaks
    another version.
    """
    if not place.service_lives():
        raise AddressError(f"no service at {place}; it starts with the first engine that connects")
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with dial(place.socket) as sock:
                sock.send(pack_message(AskStatus()))
                frame = sock.wait(ANSWER_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > end:
                reason = f"the service at {place} lets nobody in ({error.strerror}); see {place.log}"
                raise AddressError(reason) from error
        time.sleep(KNOCK_SECONDS)
    if frame is None:
        raise AddressError(f"the service at {place} does not answer; see {place.log}")
    status = unpack_reply(frame)
    if not isinstance(status, Status):
        raise MessageError("the service answered something else than its status")
    return status


def _table(status: Status) -> Table:
    table = Table(title=f"service {status.service.pid}: {status.blocks} blocks on offer, {len(status.members)} engines")
    for heading in ("pid", "space", "pools", "offers"):
        table.add_column(heading, justify="left" if heading == "space" else "right")
    for member in status.members:
        table.add_row(str(member.pid), member.space, str(member.pools), str(member.offers))
    return table
