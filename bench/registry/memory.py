"""Memory of processes."""

from __future__ import annotations

from pathlib import Path

from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address


def service_memory(address: str) -> int:
    """Bytes that the service holds."""
    try:
        return memory_of(ask_status(Address(address)).service.pid)
    except RegistryError:
        return 0


def memory_of(pid: int | None) -> int:
    """Bytes that a process holds, 0 where it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
