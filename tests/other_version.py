"""A real service with another version of the protocol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OTHER_VERSION = """
import signal, sys
from kvmarket.registry.protocol import messages
messages.PROTOCOL = b"kvmarket/0\\n"
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service
service = Service(Address(sys.argv[1]), idle_exit=600.0)
signal.signal(signal.SIGTERM, lambda *_: service.stop())
print("up", flush=True)
service.run()
service.close()
"""


@contextmanager
def service_of_another_version(address: str) -> Iterator[None]:
    """Run a service with another protocol version in a process of its own, until the block ends."""
    with subprocess.Popen([sys.executable, "-c", OTHER_VERSION, address], stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None and service.stdout.readline() == b"up\n"
            yield
        finally:
            service.terminate()
            service.wait(30)
