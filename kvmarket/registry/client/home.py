"""Choose the market to join: the one at the given address, or one beside it while another version uses the address.

Two protocol versions may run at the same time. Engines of the version whose service holds the address stay there. The
others join a second market, whose address ends in their protocol version. They move to the first address when the
service there has ended.
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
    """An engine's address, and `at`, where it has joined: the address, or the one beside it. Not thread-safe."""

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
        self._joining = replica, snapshot, foreign, closing
        self._look_at = 0.0

    def join(self) -> Connection:
        """Join at the address, or beside it. Raises what `join_service` raises."""
        self.at = self.address
        try:
            return join_service(self.at, self._join, *self._joining)
        except VersionError as error:
            counters.add("market_beside", reason="engines of another version have the address", detail=error)
        self.at = beside(self.address)
        return join_service(self.at, self._join, *self._joining)

    def join_as(self, join: Join) -> None:
        """Join with this message from now on."""
        self._join = join

    @property
    def place(self) -> str:
        """The market and the space, as text for a log; with a warning if the market is the one beside the address."""
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
        """The other spaces of this market, and other markets nearby. May take seconds.

        Raises RegistryError (see `others_of`).
        """
        return others_of(self._join, self.at, self.address)

    def left_within(self, seconds: float) -> bool:
        """Wait up to `seconds` until the engine begins to leave the market; return whether it has begun."""
        return self._closing.wait(seconds)

    def free(self, now: float) -> bool:
        """Whether to move back to the address: no service holds it any more, or one of this protocol version does.

        False between two checks, and while the engine is at its address. Checks every `LOOK_SECONDS`. A check costs a
        few ms, or up to `ANSWER_SECONDS` if the service there does not answer.
        """
        if self.at is self.address or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        try:
            return not self.address.service_lives() or _speaks(self.address)
        except RegistryError:
            return False


def beside(address: Address) -> Address:
    """The address beside this one, for engines with our version of the protocol."""
    return Address(f"{address}.{PROTOCOL.decode().strip().rpartition('/')[2]}")


def _speaks(address: Address) -> bool:
    """True if the service there answers in this version of the protocol; False without an answer.

    Raises VersionError for another version, another RegistryError if the service cannot be asked or understood.
    """
    try:
        with dial(address.socket) as sock:
            sock.send(pack_message(AskStatus()))
            frame = sock.wait(ANSWER_SECONDS)
    except OSError:
        return False
    return frame is not None and bool(unpack_reply(frame))
