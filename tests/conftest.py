"""Fixtures of all tests: markets and engines; Triton's interpreter without a GPU; skips with their reasons."""

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
    os.environ.setdefault("TRITON_INTERPRET", "1")  # set before any test module imports triton, which reads it then


def _peers() -> str:
    """Why this machine cannot run tests marked gpu2; empty when it can."""
    count = torch.cuda.device_count() if CUDA else 0
    if count < 2:
        return f"needs two NVIDIA GPUs, this machine has {count}"
    if not (torch.cuda.can_device_access_peer(0, 1) and torch.cuda.can_device_access_peer(1, 0)):
        return "GPUs 0 and 1 have no peer access to each other"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip each test that this machine cannot run, with the reason."""
    reasons = {"gpu": "" if CUDA else "needs an NVIDIA GPU, this machine has none", "gpu2": _peers()}
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests were skipped, and how many per file; ``-rs`` names each of them."""
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
    """The path of a socket in a directory of this test; short: a Unix socket's path has 107 bytes at most."""
    directory = tempfile.mkdtemp(prefix="kvm-", dir="/tmp")
    yield str(Path(directory) / "s")
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def market_address() -> Iterator[str]:
    """The address of a market that all tests share; an engine's offers disappear when it is closed."""
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
    """An engine in this process, in the market of `market_address`."""
    from tests.model_engine import ModelEngine  # here, because it may import triton

    made = ModelEngine(market_address)
    yield made
    made.close()


@pytest.fixture
def peer(market_address: str) -> Iterator[Peer]:
    """An engine in another process, in the market of `market_address`; its methods run there."""
    from tests.model_engine import Peer

    made = Peer(market_address)
    yield made
    made.kill()
