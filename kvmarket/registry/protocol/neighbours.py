"""Other markets that live near an address: whoever mistyped an address sees where the others have gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address, default_directory, identity


def others_near(place: Address) -> list[Address]:
    """The other markets of this user whose service lives.

    Those in the directory of `place` and in that of names, by their paths. Leaves nothing behind. Costs a look at every
    file of these directories.
    """
    found: dict[tuple[int, int], Address] = {}
    for directory in (place.socket.parent, default_directory()):
        for other in _markets_in(directory):
            known = identity(other.lock)
            if known is not None and known != identity(place.lock):
                found.setdefault(known, other)
    return sorted(found.values(), key=str)


def said_of_others(place: Address) -> list[str]:
    """One sentence for each other market of this user that lives near `place`."""
    return [f"another market lives at {other}" for other in others_near(place)]


def _markets_in(directory: Path) -> Iterator[Address]:
    """The markets there whose service lives; none where the directory cannot be read."""
    try:
        locks = [path for path in directory.iterdir() if path.suffix == ".lock"]
    except OSError:
        return
    for lock in locks:
        try:
            socket = lock.with_suffix("")
            if socket.is_socket() and (other := Address(socket)).service_lives():
                yield other
        except (OSError, AddressError):  # it is none of ours, or may not be looked at
            continue
