"""Where an engine joins: at its address, or beside it while engines of another version have that.

In a rolling upgrade engines of two versions run side by side. The service of the older ones keeps the address; the
newer ones meet in a market of their own beside it, and go to the address when the last older one has left it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from kvmarket import counters
from kvmarket.errors import RegistryError, VersionError
from kvmarket.registry.client.connection import ANSWER_SECONDS, Connection, join_service
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import PROTOCOL, Join, pack_message, unpack_reply
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.protocol.status import AskStatus
from kvmarket.registry.space.snapshot import SnapshotParts

LOOK_SECONDS = 2.0  # between two looks whether the address is free


class Home:
    """An engine's address, and whether it has joined there. Not thread-safe."""

    def __init__(
        self,
        address: Address,
        join: Join,
        replica: Replica,
        snapshot: Callable[[], SnapshotParts],
        foreign: ForeignPools,
        closing: Event,
    ) -> None:
        """Nothing is joined yet; the rest goes to `join_service`."""
        self.address = address
        self.away = False
        self._joining = join, replica, snapshot, foreign, closing
        self._look_at = 0.0

    def join(self) -> Connection:
        """Join at the address, or beside it. Raises what `join_service` raises."""
        self.away = False
        try:
            return join_service(self.address, *self._joining)
        except VersionError as error:
            counters.add("market_beside", reason="engines of another version have the address", detail=error)
        connection = join_service(self.beside(), *self._joining)
        self.away = True
        return connection

    def beside(self) -> Address:
        """The address of the market for engines that speak as this one does."""
        return Address(f"{self.address}.{PROTOCOL.decode().strip().rpartition('/')[2]}")

    def free(self, now: float) -> bool:
        """Whether to leave the market beside the address: nobody has that any more, or engines of this version have.

        Looks every `LOOK_SECONDS`, which costs up to some ms.
        """
        if not self.away or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        try:
            return not self.address.service_lives() or _speaks(self.address)
        except RegistryError:
            return False


def _speaks(address: Address) -> bool:
    """Whether the service there speaks as this process does. Raises RegistryError where that cannot be known."""
    try:
        with dial(address.socket) as sock:
            sock.send(pack_message(AskStatus()))
            frame = sock.wait(ANSWER_SECONDS)
    except OSError:
        return False
    return frame is not None and bool(unpack_reply(frame))
