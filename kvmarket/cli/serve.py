"""``kvmarket serve``: the service of a market in the foreground."""

from __future__ import annotations

import logging
import signal

from rich.console import Console

from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service


def serve(address: str | None) -> None:
    """Serve until SIGINT or SIGTERM, then remove the socket. Raises AddressError if another service has `address`."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    service = Service(Address(address))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop())
    Console(stderr=True).print(f"serving {service.address}; interrupt to stop")
    try:
        service.run()
    finally:
        service.close()
