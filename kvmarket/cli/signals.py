"""Signals of a command that runs until it is told to end: a thread waits for them, no handler does.

Handlers would be lost: when Triton first compiles a kernel, LLVM takes those of SIGUSR1 and others for its own, and
swallows SIGUSR1. Signals that every thread blocks never reach a handler.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Mapping

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def hold() -> None:
    """Have these signals wait until `heed`. Call it before any thread is started, so before numpy or torch is imported.

    Processes that this one starts block them too, until they unblock them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)


def heed(actions: Mapping[int, Callable[[], None]], last: Collection[int]) -> None:
    """Start a thread that calls the action of each signal that has come or comes, up to one that is among the `last`.

    Later ones wait for ever.
    """

    def run() -> None:
        number = None
        while number not in last:
            number = signal.sigwait(HEEDED)
            actions[number]()

    threading.Thread(target=run, name="kvmarket-signals", daemon=True).start()
