"""``kvmarket lend``: lend memory of this machine to all engines of a market, in the foreground."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Callable

import torch
from rich.console import Console

from kvmarket.cli.signals import heed
from kvmarket.errors import MisuseError
from kvmarket.lend.budget import Budget
from kvmarket.lend.lender import Lender


def lend(address: str | None, gpu: int | None, gb: float | None, host_gb: float | None, keep_free: float) -> None:
    """Lend until SIGINT or SIGTERM, then leave nothing behind. SIGUSR1 gives all memory back, SIGUSR2 lends it again.

    Other processes of this user may ask for another size, see `kvmarket.lend.resize`.
    `hold` must have been called, see signals.py.
    Raises MisuseError, or AddressError.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each segment maps each engine's cache
    lender = Lender(address, _budgets(gpu, gb, host_gb, int(keep_free * 1e9)))
    actions: dict[int, Callable[[], None]] = {signal.SIGUSR1: lender.pause, signal.SIGUSR2: lender.resume}
    stops = signal.SIGTERM, signal.SIGINT
    heed(actions | dict.fromkeys(stops, lender.stop), last=stops)
    Console(stderr=True).print(f"lending at {lender.place}; interrupt to stop")
    try:
        lender.listen()
        lender.run()
    finally:
        lender.close()


def _budgets(gpu: int | None, gb: float | None, host_gb: float | None, keep_free: int) -> list[Budget]:
    """The memory to lend, of each device. Raises MisuseError."""
    budgets = []
    if gpu is not None and gb is None and host_gb is None:
        raise MisuseError(f"--gpu {gpu} without --gb; say how many GB of it to lend")
    if (gpu is not None or gb is not None) and (gpu or 0) >= torch.cuda.device_count():
        raise MisuseError(f"there is no GPU {gpu or 0} on this machine; lend host memory with --host-gb alone")
    if gb is not None:
        budgets.append(Budget(torch.device("cuda", gpu or 0), int(gb * 1e9), keep_free=keep_free))
    if host_gb is not None:
        copies = torch.device("cuda", gpu or 0) if torch.cuda.is_available() else None
        budgets.append(Budget(torch.device("cpu"), int(host_gb * 1e9), keep_free=keep_free, gpu=copies))
    return budgets
