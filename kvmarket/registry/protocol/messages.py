"""The messages between engines and the service: typed, bounded, checked, never unpickled.

Each message is one frame: the protocol's name, a checksum of the rest, then one of these structs in msgpack. So a torn
frame, or two joined ones, are refused. An engine leaves by closing its connection.

Changes of the market travel as numbered `Changes`: from an engine to the service, and from the service to every other
engine of the space. A receiver that misses a number ignores all further changes and asks for a snapshot (`Again`). A
snapshot begins with a `Changes` that has `snapshot` set, continues with `Snapshot`s and the changes that happen
meanwhile, and closes with `SnapshotEnd`. Offers that were not sent since it began are dropped then. Arrays travel as
their bytes in native order.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
import xxhash

from kvmarket.errors import MessageError, VersionError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.descriptors import MOST_DESCRIPTORS
from kvmarket.registry.protocol.status import (
    MAX_NAME,
    NO_LABEL,
    AskOtherSpaces,
    AskSpace,
    AskSpaces,
    AskStatus,
    Facts,
    Label,
    OtherSpaces,
    Report,
    SpaceDescribed,
    Spaces,
    Status,
)

PROTOCOL = b"kvmarket/12\n"  # the first bytes of every message
MAX_MESSAGE_BYTES = 64 << 20
MAX_SLOTS = 1 << 24
MAX_TOKENS = 1 << 23  # of one prefix: with its slots and generations it fits a message
MAX_CHANGES = 1 << 16
SUM_BYTES = 8  # of the checksum after the protocol's name
MAX_BLOCK_SIZE = 1 << 20  # tokens
MAX_DESCRIPTORS = 1 << 14  # of the memory of one pool
MAX_POOLS = 64  # of one member

Counter = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
PoolId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Tokens = Annotated[bytes, msgspec.Meta(max_length=4 * MAX_TOKENS)]  # int32
Words = Annotated[bytes, msgspec.Meta(max_length=8 * MAX_TOKENS)]  # int64 or uint64, one a block


class PoolRecord(msgspec.Struct, frozen=True):
    """A pool as the registry knows it.

    Its id, number of slots, owners (the pool is gone if one dies), and a description that only engines decode. `lent`:
    whether it is memory of a lender, which computes nothing itself. `far`: whether reading it takes longer than reading
    an engine's own, so that a match takes other offers before its.
    """

    pool: PoolId
    slots: Annotated[int, msgspec.Meta(ge=1, le=MAX_SLOTS)]
    processes: Annotated[tuple[Process, ...], msgspec.Meta(min_length=1, max_length=1024)]
    description: Annotated[bytes, msgspec.Meta(max_length=16 << 20)]
    lent: bool = False
    far: bool = False


class Join(msgspec.Struct, frozen=True, tag="join"):
    """An engine asks to join `space` with its pools. Engines of one space can exchange all blocks.

    `geometry` and `block_size` must agree within a space. `facts` explain the name of the space, `label` names the
    engine: both are only shown by `kvmarket top`.
    """

    process: Process
    space: Name
    geometry: Name
    block_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_SIZE)]
    pools: Annotated[tuple[PoolRecord, ...], msgspec.Meta(min_length=1, max_length=MAX_POOLS)]
    facts: Facts = ()
    label: Label = NO_LABEL


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The answer to `Join`. A snapshot of the space follows, and the engine sends a snapshot of its own offers."""

    service: Process


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The service refuses a request. `kind`: the class of the error; `reason`: its text, with what to do."""

    kind: str
    reason: str


class Before(msgspec.Struct, frozen=True, array_like=True):
    """The block that an offer continues: it is offered in `slot` of the same pool, at `epoch` and `generation`."""

    slot: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SLOTS)]
    epoch: Counter
    generation: Counter


class OfferBlocks(msgspec.Struct, frozen=True, tag="offer"):
    """The message that offers: blocks `first` ... of a prefix lie in `slots` of `pool`, at `epoch` and `generations`.

    `tokens` (int32) is the whole prefix up to the end of the last block. If `before` names the block before the first
    one, `tokens` holds these blocks only, so that a growing conversation is not sent again and again; a receiver that
    does not know exactly that block refuses the offer. `slots` (int64), `generations` and `checksums` (uint64; zero: no
    checksum; may be empty) have one element a block.
    """

    pool: PoolId
    tenant: Name
    tokens: Tokens
    first: Counter
    slots: Words
    epoch: Counter
    generations: Words
    checksums: Words = b""
    before: Before | None = None


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """A part of a snapshot: runs of blocks with all their offers. A run comes after the runs that it continues.

    `runs` (int64, four a run): index into `tenants`; number of leading blocks shared with the prefix of the run before;
    number of new blocks; number of offers. `tokens` (int32): of the new blocks of all runs. `offers` (int64, five an
    offer): index of the block in its run's new blocks, index into `pools`, slot, epoch, generation; older offers of a
    block come first. `checksums` (uint64): one an offer, or empty.
    """

    tenants: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_CHANGES)]
    pools: Annotated[tuple[PoolId, ...], msgspec.Meta(max_length=MAX_CHANGES)]
    runs: Words
    tokens: Tokens
    offers: Annotated[bytes, msgspec.Meta(max_length=40 * MAX_TOKENS)]
    checksums: Words = b""


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """The offers of these slots (int64) of `pool` end; the offers of all its slots if `slots` is None."""

    pool: PoolId
    slots: Words | None


class Promise(msgspec.Struct, frozen=True, tag="promise"):
    """The engine of `pool` has begun to compute the prefix `tokens` (int32) and intends to offer it. Only a hint.

    `number` names the promise among those of the pool.
    """

    pool: PoolId
    tenant: Name
    tokens: Tokens
    number: Counter


class Settle(msgspec.Struct, frozen=True, tag="settle"):
    """A promise of `pool` ends: its blocks are offered, or will not be."""

    pool: PoolId
    number: Counter


class PoolJoined(msgspec.Struct, frozen=True, tag="pool-joined"):
    """A pool is in the space: offers of its slots may follow. An engine sends it for one that is new since `Join`."""

    record: PoolRecord


class PoolGone(msgspec.Struct, frozen=True, tag="pool-gone"):
    """A pool has left with all its offers; readers drop their mappings of it. Its owner may send it, and stay."""

    pool: PoolId


class PoolTold(msgspec.Struct, frozen=True, tag="pool-told"):
    """All live offers of a pool have been sent since it joined: others of this pool are dropped."""

    pool: PoolId


class SnapshotEnd(msgspec.Struct, frozen=True, tag="snapshot-end"):
    """The snapshot is complete for the pools in `told`: their offers that were not sent since it began are dropped.

    For another pool, which has just joined, `PoolTold` will follow. A pool that the snapshot did not name has left.
    """

    told: Annotated[tuple[PoolId, ...], msgspec.Meta(max_length=MAX_CHANGES)]


Offered = OfferBlocks | Snapshot | Retire | Promise | Settle | SnapshotEnd
News = Offered | PoolJoined | PoolGone  # what an engine sends about its own pools
Change = News | PoolTold


class Changes(msgspec.Struct, frozen=True, tag="changes"):
    """The changes since the message with the previous number. If `empty`: only repeats the number of the last message.

    `snapshot`: a snapshot begins here, so the receiver need not have the messages before.
    """

    sequence: Counter
    changes: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_CHANGES)] = ()
    snapshot: bool = False

    @property
    def empty(self) -> bool:
        """Whether the message only repeats the last number; it has no number of its own."""
        return not (self.changes or self.snapshot)


class Again(msgspec.Struct, frozen=True, tag="again"):
    """The sender missed a message and asks for a snapshot that begins after number `seen`, the highest it has seen."""

    seen: Counter


class AskDescriptors(msgspec.Struct, frozen=True, tag="ask-descriptors"):
    """Ask for descriptors of the memory of a pool in another PID namespace. The service forwards this to the owner."""

    pool: PoolId


class Descriptors(msgspec.Struct, frozen=True, tag="descriptors"):
    """Travels with descriptors `first` ... of the `total` ones of a pool: pidfds of its owners, then its files."""

    pool: PoolId
    first: Annotated[int, msgspec.Meta(ge=0, le=MAX_DESCRIPTORS)]
    total: Annotated[int, msgspec.Meta(ge=1, le=MAX_DESCRIPTORS)]

    @property
    def count(self) -> int:
        """Number of descriptors that travel with this message."""
        return min(MOST_DESCRIPTORS, self.total - self.first)


Question = AskStatus | AskOtherSpaces | AskSpaces | AskSpace
Answer = Status | OtherSpaces | Spaces | SpaceDescribed
Request = Join | Changes | Again | Report | AskDescriptors | Descriptors | Question
Reply = Joined | Refused | Changes | Again | AskDescriptors | Descriptors | Answer
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_message(message: msgspec.Struct) -> bytes:
    """Encode `message`, one of a union that the receiver decodes, as a frame."""
    body = _encoder.encode(message)
    return b"".join((PROTOCOL, xxhash.xxh3_64_digest(body), body))


def unpack_request(frame: bytes) -> Request:
    """Decode the request in `frame`. Raises VersionError or MessageError."""
    return unpack(frame, _requests)


def unpack_reply(frame: bytes) -> Reply:
    """Decode the reply in `frame`. Raises VersionError or MessageError."""
    return unpack(frame, _replies)


def unpack(frame: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Decode the message in `frame`. Raises VersionError or MessageError."""
    if not frame.startswith(PROTOCOL):
        if not frame.startswith(b"kvmarket/"):
            raise MessageError("a message that does not begin as ours; something else than kvmarket talks here")
        raise VersionError(
            f"this process speaks {PROTOCOL.decode().strip()}, the other side "
            f"{frame[:16].split()[0].decode(errors='replace')}; "
            "run one version of kvmarket on the node, or give each its own address"
        )
    body = memoryview(frame)[len(PROTOCOL) + SUM_BYTES :]
    if xxhash.xxh3_64_digest(body) != frame[len(PROTOCOL) : len(PROTOCOL) + SUM_BYTES]:
        raise MessageError("a message that is not as it was sent: torn, or joined with another one")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a message that does not decode: {error}") from error
