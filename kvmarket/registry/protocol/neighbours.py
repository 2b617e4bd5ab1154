"""Find other running markets of this user, so that a mistyped address can be seen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import partial
from pathlib import Path

from kvmarket.errors import AddressError
from kvmarket.registry.protocol.address import Address, default_directory, identity

_SOCKETS = Path("/proc/net/unix")
_LISTENS, _SEQPACKET = "00010000", "0005"  # as proc(5) shows the flags and the type of a socket


class Kind(Enum):
    """What another market is: that of another version beside the same address, one nearby, or one anywhere else."""

    VERSION = "run one version of kvmarket"
    NEAR = "engines of different markets never share: give all of them one address"
    ELSEWHERE = "engines of different markets never share: give all of them that are to share one address"


def others_near(place: Address) -> list[Address]:
    """The other markets of this user whose service runs: those in the directory of `place` or in the default one first.

    The others listen at a socket of this network namespace. Of each kind those come first whose path most resembles
    that of `place`: perhaps one of the two is mistyped. Makes no files. Costs a look at every file of these directories
    and at every Unix socket.
    """
    found: dict[tuple[int, int], Address] = {}
    near = (place.socket.parent, default_directory())
    for candidates in (socket for directory in near for socket in _sockets_in(directory)), _listened_at():
        for other in sorted(_living(candidates), key=partial(_unlike, place)):
            known = identity(other.lock)
            if known is not None and known != identity(place.lock):
                found.setdefault(known, other)
    return list(found.values())


def _unlike(place: Address, other: Address) -> tuple[float, str]:
    """How little the path of `other` resembles that of `place`, then the path itself: a key to sort by."""
    return -difflib.SequenceMatcher(None, str(place), str(other)).ratio(), str(other)


def said_of_others(place: Address) -> list[str]:
    """One sentence for each other market of this user that lives."""
    return [said_of(other, place) for other in others_near(place)]


def said_of(other: Address, place: Address) -> str:
    """A sentence about another market than that of `place`."""
    if kind_of(other, place) is Kind.VERSION:
        return f"engines that speak kvmarket/{other.socket.suffix[1:]} meet at {other}"
    return f"another market lives at {other}"


def kind_of(other: Address, place: Address) -> Kind:
    """What another market is to that of `place`."""
    beside = str(other).removeprefix(f"{place}.")
    if beside != str(other) and beside.isdigit():
        return Kind.VERSION
    near = other.socket.parent in (place.socket.parent, default_directory())
    return Kind.NEAR if near else Kind.ELSEWHERE


def _sockets_in(directory: Path) -> Iterator[Path]:
    """What has a lock beside it there; nothing where the directory cannot be read."""
    try:
        yield from [path.with_suffix("") for path in directory.iterdir() if path.suffix == ".lock"]
    except OSError:
        return


def _listened_at() -> Iterator[Path]:
    """The sockets of a service's kind that anybody listens at; none where they are not shown."""
    try:
        lines = _SOCKETS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        match line.split(maxsplit=7):
            case [_, _, _, flags, kind, _, _, path] if (flags, kind) == (_LISTENS, _SEQPACKET) and path[0] == "/":
                yield Path(path)


def _living(sockets: Iterable[Path]) -> Iterator[Address]:
    """The markets at these sockets whose service lives."""
    for socket in sockets:
        try:
            if socket.is_socket() and (other := Address(socket)).service_lives():
                yield other
        except (OSError, AddressError):  # not a market of ours, or not readable
            continue
