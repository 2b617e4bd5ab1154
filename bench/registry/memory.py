"""The resident memory of processes."""

from __future__ import annotations

from pathlib import Path

from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address


def service_memory(address: str) -> int:
    """The service's resident memory in bytes; 0 if the service does not answer."""
    try:
        return memory_of(ask_status(Address(address)).service.pid)
    except RegistryError:
        return 0


def memory_of(pid: int | None) -> int:
    """The resident memory of a process in bytes; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
