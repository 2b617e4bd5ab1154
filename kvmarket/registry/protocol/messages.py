"""What travels between engines and the service: typed, bounded, checked, never unpickled.

Each message is one frame: the protocol's name, a checksum of the rest, then one of these structs in msgpack; so a frame
that is torn or joined with another one is refused. An engine leaves by closing its connection.

What changes the market travels as numbered `Changes`, in both directions: from an engine to the service, and from there
to every other engine of the space. Whoever misses a number knows that it has missed something, heeds no further change,
and asks for a snapshot (`Again`). A snapshot begins with a message that says so, goes on in `Snapshot`, among them the
changes that happen meanwhile, and closes with `SnapshotEnd`: what was not told since it began stands no longer. Arrays
travel as their bytes in native order.
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
    AskStatus,
    Facts,
    Label,
    OtherSpaces,
    Report,
    Status,
)

PROTOCOL = b"kvmarket/9\n"  # what every message begins with
MAX_MESSAGE_BYTES = 64 << 20
MAX_SLOTS = 1 << 24
MAX_TOKENS = 1 << 23  # of one prefix: with its slots and generations it fits a message
MAX_CHANGES = 1 << 16
SUM_BYTES = 8  # of the checksum behind the protocol's name
MAX_BLOCK_SIZE = 1 << 20  # tokens
MAX_DESCRIPTORS = 1 << 14  # of the memory of one pool

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

    `geometry` must agree within a space. `facts` say what the space is named by, and `label` what the engine is called:
    both are shown by `kvmarket top`, and decide nothing.
    """

    process: Process
    space: Name
    geometry: Name
    block_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_SIZE)]
    pools: Annotated[tuple[PoolRecord, ...], msgspec.Meta(min_length=1, max_length=64)]
    facts: Facts = ()
    label: Label = NO_LABEL


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The answer to `Join`: who the service is. A snapshot of the space follows; the engine sends one of its own."""

    service: Process


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The service does not do what was asked; `reason` says why and what to do."""

    kind: str
    reason: str


class Before(msgspec.Struct, frozen=True, array_like=True):
    """The block that an offer goes on from: it is on offer in `slot` of the same pool, at `epoch` and `generation`."""

    slot: Annotated[int, msgspec.Meta(ge=0, lt=MAX_SLOTS)]
    epoch: Counter
    generation: Counter


class OfferBlocks(msgspec.Struct, frozen=True, tag="offer"):
    """The message that offers: blocks `first` ... of the prefix `tokens` lie in `slots` of `pool`.

    At `epoch` and `generations`. `tokens` (int32) is the whole prefix up to the end of the last block; or, where
    `before` names the block before the first one, of these blocks only, so that a conversation which grows is not told
    again and again. Whoever does not know exactly that block refuses the offer. `slots` (int64), `generations` and
    `checksums` (uint64; zero for none, or empty) have one element a block.
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
    """A part of a snapshot: runs of blocks with all their offers, each run after those above it.

    `runs` (int64, four a run): which of the `tenants`; how many leading blocks it shares with the run before, which
    has that many; how many blocks follow; how many offers. `tokens` (int32): those of all blocks that follow. `offers`
    (int64, five an offer): which block of its run, which of the `pools`, slot, epoch, generation; of one block the
    older ones first. `checksums` (uint64): one an offer, or empty.
    """

    tenants: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MAX_CHANGES)]
    pools: Annotated[tuple[PoolId, ...], msgspec.Meta(max_length=MAX_CHANGES)]
    runs: Words
    tokens: Tokens
    offers: Annotated[bytes, msgspec.Meta(max_length=40 * MAX_TOKENS)]
    checksums: Words = b""


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


class PoolTold(msgspec.Struct, frozen=True, tag="pool-told"):
    """All that stands in a pool has been told since it joined: what was not told of it stands no longer."""

    pool: PoolId


class SnapshotEnd(msgspec.Struct, frozen=True, tag="snapshot-end"):
    """The snapshot is complete, of the pools in `told`: what was not told of them since it began stands no longer.

    Of another pool, which joined of late, `PoolTold` will say so. A pool that was not told of at all has gone.
    """

    told: Annotated[tuple[PoolId, ...], msgspec.Meta(max_length=MAX_CHANGES)]


News = OfferBlocks | Snapshot | Retire | Promise | Settle | SnapshotEnd  # of its own pools, by an engine
Change = News | PoolJoined | PoolGone | PoolTold


class Changes(msgspec.Struct, frozen=True, tag="changes"):
    """What has changed since the message numbered one less; where it is `empty`, the number of the last one.

    `snapshot`: a snapshot begins here, whatever was missed before.
    """

    sequence: Counter
    changes: Annotated[tuple[Change, ...], msgspec.Meta(max_length=MAX_CHANGES)] = ()
    snapshot: bool = False

    @property
    def empty(self) -> bool:
        """Whether it tells a number alone: such a message has none of its own."""
        return not (self.changes or self.snapshot)


class Again(msgspec.Struct, frozen=True, tag="again"):
    """The sender missed something, and asks for a snapshot: none has begun up to number `seen`, the last it knows."""

    seen: Counter


class AskDescriptors(msgspec.Struct, frozen=True, tag="ask-descriptors"):
    """Ask for the memory of a pool whose owner is in another PID namespace: the service passes it on to him."""

    pool: PoolId


class Descriptors(msgspec.Struct, frozen=True, tag="descriptors"):
    """Beside this: descriptors `first` ... of `total` of the memory of a pool, in the order of its description."""

    pool: PoolId
    first: Annotated[int, msgspec.Meta(ge=0, le=MAX_DESCRIPTORS)]
    total: Annotated[int, msgspec.Meta(ge=1, le=MAX_DESCRIPTORS)]

    @property
    def count(self) -> int:
        """How many are beside this message."""
        return min(MOST_DESCRIPTORS, self.total - self.first)


Request = Join | Changes | Again | Report | AskStatus | AskOtherSpaces | AskDescriptors | Descriptors
Reply = Joined | Refused | Changes | Again | Status | OtherSpaces | AskDescriptors | Descriptors
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def pack_message(message: Request | Reply) -> bytes:
    """The frame of `message`."""
    body = _encoder.encode(message)
    return b"".join((PROTOCOL, xxhash.xxh3_64_digest(body), body))


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
    body = memoryview(frame)[len(PROTOCOL) + SUM_BYTES :]
    if xxhash.xxh3_64_digest(body) != frame[len(PROTOCOL) : len(PROTOCOL) + SUM_BYTES]:
        raise MessageError("a message that is not as it was sent: torn, or joined with another one")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"a message that does not decode: {error}") from error
