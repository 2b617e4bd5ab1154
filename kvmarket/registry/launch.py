"""Starting the service of a market from an engine that found none."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

from kvmarket.child import environment
from kvmarket.errors import AddressError
from kvmarket.registry.address import Address


def start_service(address: Address) -> None:
    """Start the service of `address` as a process of its own, and wait until it listens.

    Where somebody else is just starting it, returns after a moment. Raises AddressError if it does not start.
    """
    command = [sys.executable, "-m", "kvmarket.registry.daemon", str(address)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # two descriptors of the log: a lock goes with what inherits its descriptor, and the service inherits the first
        with (
            os.fdopen(os.open(address.log, flags, 0o600), "a") as log,
            os.fdopen(os.open(address.log, flags), "a") as turn,
        ):
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if address.service_lives():
                return
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                check=False,
            )
    except BlockingIOError:
        time.sleep(0.05)
        return
    except OSError as error:
        raise AddressError(f"the service at {address} cannot be started: {error}; give another address") from error
    if done.returncode:
        raise AddressError(f"the service at {address} did not start (exit {done.returncode}); see {address.log}")
