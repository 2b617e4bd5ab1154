"""Ask the service of a market for its state."""

from __future__ import annotations

import time

from kvmarket.errors import AddressError, MessageError
from kvmarket.registry.client.connection import KNOCK_SECONDS
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import pack_message, unpack_reply
from kvmarket.registry.protocol.neighbours import others_near
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.protocol.status import AskStatus, Status

ANSWER_SECONDS = 2.0


def ask_status(place: Address, *, facts: bool = False) -> Status:
    """Ask the service of `place`; with `facts`, also for the facts of its spaces.

    Raises AddressError if there is no service or it does not answer within two seconds, VersionError if it has another
    version of the protocol, MessageError for another answer.
    """
    if not place.service_lives():
        raise AddressError(f"no service at {place}; it starts with the first engine that connects")
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with dial(place.socket) as sock:
                sock.send(pack_message(AskStatus(facts)))
                frame = sock.wait(ANSWER_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > end:
                reason = f"the service at {place} lets nobody in ({error.strerror}); see {place.log}"
                raise AddressError(reason) from error
        time.sleep(KNOCK_SECONDS)
    if frame is None:
        raise AddressError(f"the service at {place} does not answer; see {place.log}")
    status = unpack_reply(frame)
    if not isinstance(status, Status):
        raise MessageError("the service answered something else than its status")
    return status


def said_of_others(place: Address) -> list[str]:
    """One sentence for each other running market of this user (see `others_near`)."""
    return [f"another market lives at {other}" for other in others_near(place)]
