"""``python -m kvmarket.registry.service.daemon SOCKET`` starts the service in the background.

The command ends when the service listens, or when another service of this address does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service
from kvmarket.support.advice import explained

IDLE_SECONDS = 3.0  # a service that was started on demand outlives its last engine by this long
_log = logging.getLogger("kvmarket.service")


def main(socket: str) -> int:
    """Fork a child that serves `socket` until no engine needs it. The exit status is 0 if a service listens."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    try:
        parent_reads, child_writes = os.pipe()
        child = os.fork()
    except OSError as error:
        _log.error("the service cannot be started %s", explained(error))
        return 1
    if child:
        os.close(child_writes)
        os._exit(int(os.read(parent_reads, 1) or b"1"))  # an engine waits for this: a normal exit takes 15 ms more
    os.close(parent_reads)
    os.setpgid(0, 0)  # not setsid: where Linux shares the CPU by session, a session of our own waited for seconds
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever starts us may block signals, as `kvmarket lend` does
    os.chdir("/")
    try:
        service = Service(Address(socket), idle_exit=IDLE_SECONDS)
    except AddressError as error:
        taken = _is_served(socket)
        if not taken:
            _log.error("%s", error)
        os.write(child_writes, b"0" if taken else b"1")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: service.stop())
    os.write(child_writes, b"0")
    os.close(child_writes)
    try:
        service.run()
    finally:
        service.close()
    return 0


def _is_served(socket: str) -> bool:
    """Whether another service holds the address."""
    try:
        return Address(socket).service_lives()
    except AddressError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
