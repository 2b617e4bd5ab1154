"""What every test shares: Triton's interpreter where there is no GPU, skips that say why, a market of one's own."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from kvmarket.registry.protocol import neighbours
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service

if TYPE_CHECKING:
    from tests.model_engine import ModelEngine, Peer

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, so before any test module is


def _peers() -> str:
    """Why this machine cannot run tests marked gpu2; empty when it can."""
    count = torch.cuda.device_count() if CUDA else 0
    if count < 2:
        return f"needs two NVIDIA GPUs, this machine has {count}"
    if not (torch.cuda.can_device_access_peer(0, 1) and torch.cuda.can_device_access_peer(1, 0)):
        return "GPUs 0 and 1 have no peer access to each other"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, by name and with a reason, what this machine cannot run."""
    reasons = {"gpu": "" if CUDA else "needs an NVIDIA GPU, this machine has none", "gpu2": _peers()}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why tests were skipped, and how many in which file; ``-rs`` names each of them."""
    reasons: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        reasons.setdefault(reason, Counter())[report.nodeid.partition("::")[0].removeprefix("tests/")] += 1
    for reason, files in sorted(reasons.items(), key=lambda each: -each[1].total()):
        terminalreporter.write_line(f"{files.total()} skipped: {reason}")
        terminalreporter.write_line("    " + ", ".join(f"{file} {count}" for file, count in sorted(files.items())))


@pytest.fixture(autouse=True)
def no_markets_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no markets of the machine that are in other folders than theirs."""
    monkeypatch.setattr(neighbours, "_SOCKETS", Path("/proc/none"))


@pytest.fixture
def own_address() -> Iterator[str]:
    """Path of a socket in a private directory of this test's own; short, because a Unix socket's path has 107 bytes."""
    directory = tempfile.mkdtemp(prefix="kvm-", dir="/tmp")
    yield str(Path(directory) / "s")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def market_address() -> Iterator[str]:
    """Address of a market whose service lives as long as the tests do. What an engine offered goes when it closes."""
    directory = tempfile.mkdtemp(prefix="kvm-", dir="/tmp")
    address = Address(Path(directory) / "s")
    service = Service(address)
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    yield str(address)
    service.stop()
    thread.join()
    service.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def engine(market_address: str) -> Iterator[ModelEngine]:
    """An engine of this process, in that market."""
    from tests.model_engine import ModelEngine  # only now: it may import triton

    made = ModelEngine(market_address)
    yield made
    made.close()


@pytest.fixture
def peer(market_address: str) -> Iterator[Peer]:
    """An engine of another process, in that market; what it is asked to do it does there."""
    from tests.model_engine import Peer

    made = Peer(market_address)
    yield made
    made.kill()
