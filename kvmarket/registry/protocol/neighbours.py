"""Find other running markets of this user, so that the command line can hint at a mistyped address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address, default_directory, identity


def others_near(place: Address) -> list[Address]:
    """The other markets of this user whose service runs, sorted by path.

    Looks in the directory of `place` and in the default directory. Makes no files. Costs a look at every file there.
    """
    found: dict[tuple[int, int], Address] = {}
    for directory in (place.socket.parent, default_directory()):
        for other in _markets_in(directory):
            known = identity(other.lock)
            if known is not None and known != identity(place.lock):
                found.setdefault(known, other)
    return sorted(found.values(), key=str)


def _markets_in(directory: Path) -> Iterator[Address]:
    """The markets in `directory` whose service runs; none if the directory cannot be read."""
    try:
        locks = [path for path in directory.iterdir() if path.suffix == ".lock"]
    except OSError:
        return
    for lock in locks:
        try:
            socket = lock.with_suffix("")
            if socket.is_socket() and (other := Address(socket)).service_lives():
                yield other
        except (OSError, AddressError):  # not a market of ours, or not readable
            continue
