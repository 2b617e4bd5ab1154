"""What travels between engines and the service: typed, bounded, never unpickled.

Each message on the wire is two frames: the protocol, then one of these structs in msgpack. An offer travels in
`OfferBlocks` on its way to the registry and as `Run`, consecutive blocks of one pool, on its way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from kvmarket.errors import MessageError, VersionError
from kvmarket.shared_file import Process

PROTOCOL = b"kvmarket/2"
MAX_MESSAGE_BYTES = 256 << 20
MAX_BLOCKS = 1 << 22

Slot = Annotated[int, msgspec.Meta(ge=0, le=(1 << 40) - 1)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
PoolId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=4096)]
Slots = Annotated[tuple[Slot, ...], msgspec.Meta(max_length=MAX_BLOCKS)]
Counters = Annotated[tuple[Counter, ...], msgspec.Meta(max_length=MAX_BLOCKS)]
Checksums = Annotated[bytes, msgspec.Meta(max_length=8 * MAX_BLOCKS)]  # 8 bytes a block, zeros for none; or empty


class PoolRecord(msgspec.Struct, frozen=True):
    """A pool as the registry sees it: an id, the processes it dies with, and a description that only engines read."""

    pool: PoolId
    processes: Annotated[tuple[Process, ...], msgspec.Meta(min_length=1, max_length=1024)]
    description: bytes


class Join(msgspec.Struct, frozen=True, tag="join"):
    """An engine asks to join `space`, in which all offers are exchangeable, with its pools.

    `geometry` must agree within a space.
    """

    process: Process
    space: Name
    geometry: Name
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    pools: Annotated[tuple[PoolRecord, ...], msgspec.Meta(min_length=1, max_length=64)]


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The answer to `Join`: who the service is, and the name under which the engine may `Attach` for notices."""

    service: Process
    member: str


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """A second connection of `member`, on which it wants to hear notices."""

    member: Name


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """The answer to `Attach`."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The service does not do what was asked; `reason` says why and what to do."""

    kind: str
    reason: str


class OfferBlocks(msgspec.Struct, frozen=True, tag="offer"):
    """The message that offers: blocks `first` ...

    Of the prefix `tokens` lie in `slots` of `pool`, at `epoch` and `generations`.

    `tokens` is the whole prefix up to the end of the last block, native int32.
    """

    pool: PoolId
    tenant: Name
    tokens: bytes
    first: Slot
    slots: Slots
    epoch: Counter
    generations: Counters
    checksums: Checksums = b""


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """These slots of `pool` are on offer no longer; all of them when `slots` is None."""

    pool: PoolId
    slots: Slots | None


class Match(msgspec.Struct, frozen=True, tag="match"):
    """Ask for the longest offered prefix of `tokens`, from block `first` on.

    `without` names pools not wanted, `known` those described before.
    """

    request: Counter
    tenant: Name
    tokens: bytes
    first: Slot
    without: tuple[PoolId, ...]
    known: tuple[PoolId, ...]


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive blocks of a match that lie in one pool at one epoch."""

    pool: PoolId
    epoch: Counter
    slots: Slots
    generations: Counters
    checksums: Checksums = b""

    def __post_init__(self) -> None:
        count = len(self.slots)
        if len(self.generations) != count or len(self.checksums) not in (0, 8 * count):
            raise ValueError("slots, generations and checksums of a run do not fit each other")


class Matched(msgspec.Struct, frozen=True, tag="matched"):
    """The answer to `Match`: runs in block order, and the records of pools the asker does not know."""

    request: Counter
    runs: tuple[Run, ...]
    pools: tuple[PoolRecord, ...]


class Gone(msgspec.Struct, frozen=True, tag="gone"):
    """A notice: these pools are gone; drop what is mapped of them."""

    pools: tuple[PoolId, ...]


class AskStatus(msgspec.Struct, frozen=True, tag="ask-status"):
    """Ask what the market holds."""


class MemberStatus(msgspec.Struct, frozen=True):
    """One engine as `kvmarket top` shows it."""

    pid: int
    space: str
    pools: int
    offers: int


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The answer to `AskStatus`."""

    service: Process
    members: tuple[MemberStatus, ...]
    blocks: int
    counters: dict[str, int]


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """An engine leaves: everything of it is taken down."""


Request = Join | Attach | OfferBlocks | Retire | Match | AskStatus | Leave
Reply = Joined | Attached | Refused | Matched | Gone | Status
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_message(message: Request | Reply) -> list[bytes]:
    """The frames of `message`."""
    return [PROTOCOL, _encoder.encode(message)]


def unpack_request(frames: Sequence[bytes]) -> Request:
    """The request in `frames`. Raises VersionError or MessageError."""
    return _unpack(frames, _requests)


def unpack_reply(frames: Sequence[bytes]) -> Reply:
    """The reply in `frames`. Raises VersionError or MessageError."""
    return _unpack(frames, _replies)


def joined(checksums: Sequence[bytes]) -> bytes:
    """Checksums of consecutive blocks in one piece, zeros for those that have none; empty where none has one."""
    return b"".join(each or bytes(8) for each in checksums) if any(checksums) else b""


def _unpack(frames: Sequence[bytes], decoder: msgspec.msgpack.Decoder[T]) -> T:
    if not frames or not frames[0].startswith(b"kvmarket/") or len(frames[0]) > 32:
        raise MessageError("a message without the protocol frame; something else than kvmarket talks to this socket")
    if frames[0] != PROTOCOL:
        raise VersionError(
            f"this process speaks {PROTOCOL.decode()}, the other side {frames[0].decode(errors='replace')}; "
            "run one version of kvmarket on the node, or give each its own address"
        )
    if len(frames) != 2:
        raise MessageError(f"a message of {len(frames)} frames where 2 are due")
    try:
        return decoder.decode(frames[1])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a message that does not decode: {error}") from error
