"""``kvmarket serve``: the service of a market in the foreground."""

from __future__ import annotations

import logging
import signal
import sys

from rich.console import Console

from kvmarket.registry.address import Address
from kvmarket.registry.service import Service


def serve(address: str | None) -> None:
    """Serve until SIGINT or SIGTERM, then remove the socket. Raises AddressError if another service has the market."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    service = Service(Address(address))
    Console(stderr=True).print(f"serving {service.address}; interrupt to stop")
    try:
        service.run()
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
    finally:
        service.close()
