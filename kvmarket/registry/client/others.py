"""Who is near an engine and shares nothing with it: in other spaces of its market, or in other markets."""

from __future__ import annotations

from typing import NamedTuple

from kvmarket.registry.client.asking import ask_other_spaces
from kvmarket.registry.protocol.address import Address, identity
from kvmarket.registry.protocol.differences import Difference, differences
from kvmarket.registry.protocol.folder import said_to_who_is_alone
from kvmarket.registry.protocol.messages import Join
from kvmarket.registry.protocol.neighbours import others_near
from kvmarket.registry.protocol.status import Label


class Apart(NamedTuple):
    """Another space of the same market: the engine that joined it first, and what differs (ours first).

    `differing` is None where the service does not tell the facts: it tells those of few spaces.
    """

    space: str
    pid: int
    label: Label
    differing: list[Difference] | None


class Others(NamedTuple):
    """`spaces`: some of the `total` other spaces, those that most resemble ours first. `markets`: other ones nearby.

    `folder`: why nobody may come to the market's folder, as a sentence; empty where nothing speaks for that.
    """

    spaces: list[Apart]
    total: int
    markets: list[Address]
    folder: str


def others_of(join: Join, place: Address, home: Address) -> Others:
    """Who is near the engine that has joined the market at `place`, while it has the address `home`.

    Asks the service, which takes up to some seconds, and looks for other markets: not for a scheduling thread. Raises
    RegistryError where the service does not answer.
    """
    told = ask_other_spaces(place, join.space)
    spaces = [
        Apart(each.name, each.pid, each.label, differences(join.facts, each.facts) if each.facts else None)
        for each in told.spaces
    ]
    markets = [other for other in others_near(home) if identity(other.lock) != identity(place.lock)]
    return Others(spaces, told.total, markets, said_to_who_is_alone(home.socket.parent))
