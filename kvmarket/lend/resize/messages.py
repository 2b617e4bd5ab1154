"""The messages between a lender and whoever asks it for another size, in the frames of the market's own protocol.

An asker sends one question at a time and waits for its answer, which is `Lent` or `Refused`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Refused, unpack
from kvmarket.registry.protocol.status import Count

MOST_BYTES = 1 << 14  # of one message
MOST_MEMORIES = 64  # of one lender

Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)] | None  # of a GPU; None for the host
Memories = Annotated[tuple["Memory", ...], msgspec.Meta(max_length=MOST_MEMORIES)]
Sizes = Annotated[tuple["Size", ...], msgspec.Meta(min_length=1, max_length=MOST_MEMORIES)]


class AskLent(msgspec.Struct, frozen=True, tag="ask-lent"):
    """Ask what the lender lends. Changes nothing."""


class Size(msgspec.Struct, frozen=True):
    """Lend up to `nbytes` of GPU number `gpu`, as the lender numbers them, or of the host (None). 0: all comes back."""

    gpu: Number
    nbytes: Count


class Resize(msgspec.Struct, frozen=True, tag="resize"):
    """Ask for these sizes; memory that is not named keeps its size. Refused as a whole, or done as a whole."""

    sizes: Sizes


class Memory(msgspec.Struct, frozen=True):
    """What the lender lends of one GPU (its number) or of the host (None): up to `nbytes`, and `lent` of it by now.

    `keep_free`: bytes of the device that stay free for others.
    """

    gpu: Number
    nbytes: Count
    lent: Count
    keep_free: Count

    @property
    def name(self) -> str:
        """What people call this memory."""
        return "host memory" if self.gpu is None else f"GPU {self.gpu}"


class Lent(msgspec.Struct, frozen=True, tag="lent"):
    """The answer: who the lender is, and what it lends now. `paused`: none of it until it gets SIGUSR2."""

    process: Process
    memories: Memories
    paused: bool


Question = AskLent | Resize
_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answers: msgspec.msgpack.Decoder[Lent | Refused] = msgspec.msgpack.Decoder(Lent | Refused)


def unpack_question(frame: bytes) -> Question:
    """Decode what an asker sent. Raises VersionError or MessageError."""
    return unpack(frame, _questions)


def unpack_answer(frame: bytes) -> Lent | Refused:
    """Decode what a lender sent. Raises VersionError or MessageError."""
    return unpack(frame, _answers)
