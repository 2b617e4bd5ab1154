"""Ask the service of a market something without being a member."""

from __future__ import annotations

import time
from typing import TypeVar

from kvmarket.errors import AddressError, MessageError
from kvmarket.registry.client.connection import KNOCK_SECONDS
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Question, pack_message, unpack_reply
from kvmarket.registry.protocol.packets import dial
from kvmarket.registry.protocol.status import (
    AskOtherSpaces,
    AskSpace,
    AskSpaces,
    AskStatus,
    OtherSpaces,
    SpaceDescribed,
    Spaces,
    Status,
)

ANSWER_SECONDS = 2.0
Answer = TypeVar("Answer", Status, OtherSpaces, Spaces, SpaceDescribed)


def ask_status(place: Address, *, facts: bool = False) -> Status:
    """Ask the service of `place` for its state; with `facts`, also for the facts of its spaces.

    Waits up to `ANSWER_SECONDS` to be let in, and as long for the answer. Raises AddressError if there is no service or
    it does not answer, VersionError if it has another version of the protocol, MessageError for another answer.
    """
    return _ask(place, AskStatus(facts), Status)


def ask_other_spaces(place: Address, space: str) -> OtherSpaces:
    """Ask the service of `place` who is in other spaces than this one. Raises what `ask_status` raises."""
    return _ask(place, AskOtherSpaces(space), OtherSpaces)


def ask_spaces(place: Address) -> Spaces:
    """Ask the service of `place` which spaces there are. Raises what `ask_status` raises."""
    return _ask(place, AskSpaces(), Spaces)


def ask_space(place: Address, space: str) -> SpaceDescribed:
    """Ask the service of `place` what a lender must know to join a space. Raises what `ask_status` raises."""
    return _ask(place, AskSpace(space), SpaceDescribed)


def _ask(place: Address, question: Question, kind: type[Answer]) -> Answer:
    if not place.service_lives():
        raise AddressError(f"no service at {place}; it starts with the first engine that connects")
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            with dial(place.socket) as sock:
                sock.send(pack_message(question))
                frame = sock.wait(ANSWER_SECONDS)
            break
        except OSError as error:
            if time.monotonic() > end:
                reason = f"the service at {place} lets nobody in ({error.strerror}); see {place.log}"
                raise AddressError(reason) from error
        time.sleep(KNOCK_SECONDS)
    if frame is None:
        raise AddressError(f"the service at {place} does not answer; see {place.log}")
    answer = unpack_reply(frame)
    if not isinstance(answer, kind):
        raise MessageError(f"the service answered {question} with something else; see {place.log}")
    return answer
