"""Choose the market to join: the one at the given address, or one beside it while another version uses the address.

In a rolling upgrade engines of two versions run at the same time. The service of the older ones keeps the address. The
newer ones join a second market, whose address ends in the protocol's version, and move to the first address when the
last older engine has left.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from kvmarket import counters
from kvmarket.errors import RegistryError, VersionError
from kvmarket.registry.client.connection import ANSWER_SECONDS, Connection, join_service
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.others import Others, others_of
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import PROTOCOL, Join, pack_message, unpack_reply
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.protocol.status import AskStatus, Label
from kvmarket.registry.space.snapshot import SnapshotParts

LOOK_SECONDS = 2.0  # between two checks whether the address is free


class Home:
    """An engine's address, and whether it has joined beside it (`away`). Not thread-safe."""

    def __init__(
        self,
        address: Address,
        join: Join,
        replica: Replica,
        snapshot: Callable[[], SnapshotParts],
        foreign: ForeignPools,
        closing: Event,
    ) -> None:
        """Join nothing yet. The other arguments are for `join_service`."""
        self.address = address
        self.at = address  # where it joins, or has joined: at the address or beside it
        self._join, self._closing = join, closing
        self._joining = join, replica, snapshot, foreign, closing
        self._look_at = 0.0

    def join(self) -> Connection:
        """Join at the address, or beside it. Raises what `join_service` raises."""
        self.at = self.address
        try:
            return join_service(self.at, *self._joining)
        except VersionError as error:
            counters.add("market_beside", reason="engines of another version have the address", detail=error)
        self.at = self.beside()
        return join_service(self.at, *self._joining)

    @property
    def place(self) -> str:
        """The market and the space, as in `kvmarket top`: whoever has another never meets this engine."""
        if self.at is self.address:
            return f"market {self.at}, space {self._join.space}"
        return (
            f"market {self.at} (engines of another version of kvmarket have {self.address}, and share among "
            f"themselves: run one version), space {self._join.space}"
        )

    @property
    def label(self) -> Label:
        """What this engine is called."""
        return self._join.label

    def others(self) -> Others:
        """Who is near, and shares nothing with this engine. See `others_of`."""
        return others_of(self._join, self.at, self.address)

    def left_within(self, seconds: float) -> bool:
        """Wait until the market was left, at most so long; whether it was."""
        return self._closing.wait(seconds)

    def beside(self) -> Address:
        """The address beside ours, for engines with this version of the protocol."""
        return Address(f"{self.address}.{PROTOCOL.decode().strip().rpartition('/')[2]}")

    def free(self, now: float) -> bool:
        """Whether to move back to the address: no service holds it any more, or one of this protocol version does.

        Checks every `LOOK_SECONDS`, which costs up to a few ms. False if the engine is not away.
        """
        if self.at is self.address or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        try:
            return not self.address.service_lives() or _speaks(self.address)
        except RegistryError:
            return False


def _speaks(address: Address) -> bool:
    """Whether the service there has this version of the protocol. Raises RegistryError if that cannot be known."""
    try:
        with dial(address.socket) as sock:
            sock.send(pack_message(AskStatus()))
            frame = sock.wait(ANSWER_SECONDS)
    except OSError:
        return False
    return frame is not None and bool(unpack_reply(frame))
