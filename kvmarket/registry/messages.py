"""What travels between engines and the service: typed, bounded, never unpickled.

Each message is one frame: the protocol's name, then one of these structs in msgpack. An engine leaves by closing its
connection. What engines send to change the market (`News`) goes on from the service to every engine of the space, in
one numbered stream of `Changes`; whoever joins, or missed a number, is first sent all that stands as a `Snapshot`.
Arrays travel as their bytes in native order.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from kvmarket.errors import MessageError, VersionError
from kvmarket.shared_file import Process

PROTOCOL = b"kvmarket/7\n"  # what every message begins with
MAX_MESSAGE_BYTES = 64 << 20
MAX_SLOTS = 1 << 24
MAX_TOKENS = 1 << 23  # of one prefix: with its slots and generations it fits a message
MAX_CHANGES = 1 << 16
MAX_NAME = 4096  # characters
MAX_BLOCK_SIZE = 1 << 20  # tokens

Counter = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
PoolId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Tokens = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_TOKENS)]  # int32
Words = Annotated[bytes, msgspec.Meta(max_length=8 * MAX_TOKENS)]  # int64 or uint64, one a block


class PoolRecord(msgspec.Struct, frozen=True):
    """A pool as the registry sees it.

    An id, its slots, the processes it dies with, and a description that only engines read.
    """

    pool: PoolId
    slots: Annotated[int, msgspec.Meta(ge=1, le=MAX_SLOTS)]
    processes: Annotated[tuple[Process, ...], msgspec.Meta(min_length=1, max_length=1024)]
    description: Annotated[bytes, msgspec.Meta(max_length=16 << 20)]


class Join(msgspec.Struct, frozen=True, tag="join"):
    """An engine asks to join `space`, in which all offers are exchangeable, with its pools.

    `geometry` must agree within a space.
    """

    process: Process
    space: Name
    geometry: Name
    block_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_SIZE)]
    pools: Annotated[tuple[PoolRecord, ...], msgspec.Meta(min_length=1, max_length=64)]


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The answer to `Join`: who the service is. A `Snapshot` follows, then the stream of changes."""

    service: Process


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The service does not do what was asked; `reason` says why and what to do."""

    kind: str
    reason: str


class OfferBlocks(msgspec.Struct, frozen=True, tag="offer"):
    """The message that offers: blocks `first` ... of the prefix `tokens` lie in `slots` of `pool`.

    At `epoch` and `generations`. `tokens` (int32) is the whole prefix up to the end of the last block; or, where the
    block before the first one is on offer in slot `after` of the same pool (-1: it need not be), of these blocks only,
    so that a conversation which grows is not told again and again. `slots` (int64), `generations` and `checksums`
    (uint64; zero for none, or empty) have one element a block.
    """

    pool: PoolId
    tenant: Name
    tokens: Tokens
    first: Counter
    slots: Words
    epoch: Counter
    generations: Words
    checksums: Words = b""
    after: Annotated[int, msgspec.Meta(ge=-1, lt=MAX_SLOTS)] = -1


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """These slots (int64) of `pool` are on offer no longer; all of them when `slots` is None."""

    pool: PoolId
    slots: Words | None


class Promise(msgspec.Struct, frozen=True, tag="promise"):
    """The engine of `pool` has begun to compute the prefix `tokens` (int32), and will offer it, as it is minded now.

    A hint. `number` names it among those of the pool.
    """

    pool: PoolId
    tenant: Name
    tokens: Tokens
    number: Counter


class Settle(msgspec.Struct, frozen=True, tag="settle"):
    """A promise of `pool` stands no longer: what it promised is on offer, or will not be."""

    pool: PoolId
    number: Counter


class PoolJoined(msgspec.Struct, frozen=True, tag="pool-joined"):
    """A pool of the space: offers of its slots may follow."""

    record: PoolRecord


class PoolGone(msgspec.Struct, frozen=True, tag="pool-gone"):
    """A pool is gone with all its offers; drop what is mapped of it."""

    pool: PoolId


News = OfferBlocks | Retire | Promise | Settle  # of a pool, by its engine
Change = News | PoolJoined | PoolGone


class Changes(msgspec.Struct, frozen=True, tag="changes"):
    """What others have changed in a space since the message numbered one less; empty when it only tells the number."""

    sequence: Counter
    changes: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_CHANGES)]


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """A part of all that stands in a space after the changes numbered `sequence`; `first` and `last` mark the ends."""

    sequence: Counter
    first: bool
    last: bool
    changes: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_CHANGES)]


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """An engine missed a number, and asks for a snapshot."""


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


Request = Join | News | Sync | AskStatus
Reply = Joined | Refused | Changes | Snapshot | Status
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_message(message: Request | Reply) -> bytes:
    """The frame of `message`."""
    return PROTOCOL + _encoder.encode(message)


def unpack_request(frame: bytes) -> Request:
    """The request in `frame`. Raises VersionError or MessageError."""
    return _unpack(frame, _requests)


def unpack_reply(frame: bytes) -> Reply:
    """The reply in `frame`. Raises VersionError or MessageError."""
    return _unpack(frame, _replies)


def _unpack(frame: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    if not frame.startswith(PROTOCOL):
        if not frame.startswith(b"kvmarket/"):
            raise MessageError("a message that does not begin as ours; something else than kvmarket talks here")
        raise VersionError(
            f"this process speaks {PROTOCOL.decode().strip()}, the other side "
            f"{frame[:16].split()[0].decode(errors='replace')}; "
            "run one version of kvmarket on the node, or give each its own address"
        )
    try:
        return decoder.decode(memoryview(frame)[len(PROTOCOL) :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a message that does not decode: {error}") from error
