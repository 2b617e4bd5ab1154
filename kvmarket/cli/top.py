"""``kvmarket top``: who is in a market and what is on offer."""

from __future__ import annotations

import time

import zmq
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kvmarket.errors import AddressError, MessageError
from kvmarket.registry.address import Address
from kvmarket.registry.messages import AskStatus, Status, pack_message, unpack_reply


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
    """Ask the service of `place`. Raises AddressError when there is none or it does not answer within two seconds."""
    if not place.service_lives():
        raise AddressError(f"no service at {place}; it starts with the first engine that connects")
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        socket.connect(place.endpoint)
        socket.send(pack_message(AskStatus()))
        if not socket.poll(2000):
            raise AddressError(f"the service at {place} does not answer; see {place.log}")
        status = unpack_reply(socket.recv())
    finally:
        socket.close(linger=0)
        context.term()
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
