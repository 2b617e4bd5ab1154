"""The targets of fuzzing: each takes bytes as from a socket, and may raise the protocol's errors only.

A target also asserts that a refused input has changed nothing.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from kvmarket import counters
from kvmarket.errors import (
    LayoutError,
    MessageError,
    NamespaceError,
    RefusedError,
    RegistryError,
    TokenError,
    VersionError,
)
from kvmarket.market.peers import Peers
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import (
    PROTOCOL,
    SUM_BYTES,
    Again,
    Change,
    Changes,
    Join,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    PoolRecord,
    PoolTold,
    Promise,
    Reply,
    Request,
    Retire,
    Settle,
    Snapshot,
    SnapshotEnd,
    pack_message,
    unpack_reply,
    unpack_request,
)
from kvmarket.registry.protocol.offering import offering_of
from kvmarket.registry.protocol.packets import PacketSocket, dial
from kvmarket.registry.protocol.status import AskOtherSpaces, AskStatus, Fact, Label, Report
from kvmarket.registry.service.service import Service
from kvmarket.registry.service.session import Session
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.space import Space

REFUSALS = (MessageError, RefusedError, VersionError, LayoutError, NamespaceError, TokenError)
BLOCK, SLOTS = 2, 8


def record(pool: str) -> PoolRecord:
    return PoolRecord(pool, SLOTS, (Process.current(),), b"")


def offer(pool: str, slots: tuple[int, ...], generation: int) -> OfferBlocks:
    tokens = np.arange(BLOCK * len(slots), dtype=np.int32)
    generations = np.full(len(slots), generation, np.uint64)
    return OfferBlocks(pool, "", tokens.tobytes(), 0, np.array(slots).tobytes(), 1, generations.tobytes())


def frame_of(body: bytes) -> bytes:
    """A frame with this body and the right checksum."""
    return PROTOCOL + xxhash.xxh3_64_digest(body) + body


def body_of(message: Request | Reply) -> bytes:
    """The body of the frame of `message`: the part to damage, as a damaged frame fails its checksum at once."""
    return pack_message(message)[len(PROTOCOL) + SUM_BYTES :]


def state_of(space: Space) -> object:
    """The state of a space, for comparison."""
    pools = {name: (pool.generations.tobytes(), pool.epochs.tobytes()) for name, pool in space.pools.items()}
    return space.blocks, pools, list(space.promises)


def branches_of(pool: str) -> Snapshot:
    """Two branches of one block behind another block."""
    space = Space(BLOCK)
    space.add_pool(record(pool))
    for last in (5, 6):
        tokens = np.array([1] * BLOCK + [last] * BLOCK, np.int32)
        offering = offer(pool, (0, last), 2)
        space.offer(offering_of(msgspec.structs.replace(offering, tokens=tokens.tobytes()), BLOCK))
    parts = SnapshotParts([space])
    parts.part()  # the records of the pools
    (part,) = (change for change in parts.part() if isinstance(change, Snapshot))
    return part


class ServiceTarget:
    """A service with one member. Inputs arrive from that member, or from a connection that is no member."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="kvm-", dir="/tmp")
        self.service = Service(Address(Path(self._folder) / "s"))
        self._ends: dict[Session, PacketSocket] = {}  # by connection: its other end, which nobody reads
        self._stranger = self._connect()
        self._join()

    def _connect(self) -> Session:
        """A new connection."""
        other = dial(self.service.address.socket)
        self.service._sessions.let_in()
        (session,) = set(self.service._sessions) - set(self._ends)
        self._ends[session] = other
        return session

    def _join(self) -> None:
        self._member = self._connect()
        self.service._handle(self._member, Join(Process.current(), "space", "g", BLOCK, (record("mine"),)))
        said = offer("mine", (0, 1, 2), 5), SnapshotEnd(("mine",))
        self.service._handle(self._member, Changes(1, said, snapshot=True))

    def state(self) -> object:
        """The state of the service, for comparison."""
        members = self.service._exchange.members
        return (
            sorted(members.by_name),
            [(name, state_of(space)) for name, space in sorted(members.spaces.items())],
            sorted(session.member for session in self.service._sessions),
            len(self.service._deaths._watched),
        )

    def run(self, data: bytes, stranger: bool = False) -> bool:
        """Give the service one message; returns whether it was accepted."""
        before = self.state()
        session = self._stranger if stranger else self._member
        try:
            request = unpack_request(frame_of(data))
            if isinstance(request, Changes):  # what does not follow is not heeded
                request = msgspec.structs.replace(request, sequence=session.heard._last + 1)
            self.service._handle(session, request)
        except REFUSALS:
            assert self.state() == before, "a refused message changed the state"
            return False
        for name, space in self.service._exchange.members.spaces.items():
            for pool in space.pools.values():
                assert len(pool.standing()) <= pool.record.slots, name
            space.trie._check()
        self.service._exchange.tell(0.0)
        self.service._exchange.members.collect(0.0)
        if self._member not in self.service._sessions:  # the stranger took its place
            self._ends.pop(self._member).close()
            self._join()  # and the other way round
            self._ends.pop(self._stranger).close()
            self._stranger = self._connect()
        return True

    def seeds(self) -> list[bytes]:
        """Good messages, to be damaged."""
        news: list[Change] = [
            offer("mine", (3, 4, 5), 7), offer("mine", (0,), 9), Retire("mine", np.array([0, 2]).tobytes()),
            Retire("mine", None), Promise("mine", "", np.arange(2 * BLOCK, dtype=np.int32).tobytes(), 1),
            Settle("mine", 1), branches_of("mine"), SnapshotEnd(("mine",)),
        ]  # fmt: skip
        requests: list[Request] = [
            Join(Process.current(), "space", "g", BLOCK, (record("mine"), record("more"))),
            *(Changes(2, (each,)) for each in news), Changes(2, (), snapshot=True), Changes(1), Again(3), AskStatus(),
            AskStatus(facts=True), AskOtherSpaces("space"), Report({"count{reason}": 1}),
            Join(Process.current(), "space", "g", BLOCK, (record("more"),), (Fact("", "1", bytes(8)),), Label("m", 8)),
        ]  # fmt: skip
        return [body_of(each) for each in requests]

    def close(self) -> None:
        """Remove everything."""
        self.service.close()
        for other in self._ends.values():
            other.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class ReplicaTarget:
    """A replica with some content; every input arrives as from its service."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self.peers = Peers(self.unreadable.append, self.unreadable.append, lambda _pool: None)
        self._fill()

    def _fill(self) -> None:
        self.replica = Replica(BLOCK, (record("mine"),))
        known = PoolJoined(record("theirs")), offer("theirs", (0, 1, 2), 5), SnapshotEnd(("theirs",))
        self.replica.receive(Changes(1, known, snapshot=True))
        self._drain()

    def _drain(self) -> None:
        while self.replica.pending:
            self.replica.step()

    def run(self, data: bytes) -> bool:
        """Give the replica one message; returns whether it decodes. Its pools and offers may still be refused."""
        before = state_of(self.replica.space)
        try:
            reply = unpack_reply(frame_of(data))
        except RegistryError:
            assert state_of(self.replica.space) == before, "a refused message changed the state"
            return False
        if isinstance(reply, Changes):
            self.replica.receive(reply)
            self._drain()
            self._check()
            if len(self.replica.space.pools) > 50 or "theirs" not in self.replica.space.pools:
                self._fill()
        return True

    def _check(self) -> None:
        """Assert that the pools of a match can be looked up or are refused, without an exception."""
        space = self.replica.space
        space.trie._check()
        for tenant in ("", "t", "\0"):
            for tokens, _ in list(space.trie.items())[:4]:
                for run in space.match(tokens, tenant, 0, ()):
                    self.peers.of(space.pools[run.pool].record)

    def seeds(self) -> list[bytes]:
        """Good messages, to be damaged."""
        changes = (
            PoolJoined(record("new")), offer("theirs", (3, 4), 6), offer("new", (0, 1), 1), offer("unknown", (0,), 1),
            Retire("theirs", np.array([1]).tobytes()), Retire("theirs", None), PoolGone("new"),
            Promise("theirs", "", np.arange(2 * BLOCK, dtype=np.int32).tobytes(), 1), Settle("theirs", 1),
            branches_of("theirs"), PoolTold("theirs"), SnapshotEnd(("theirs", "new")),
        )  # fmt: skip
        replies: list[Reply] = [Changes(2, (change,)) for change in changes]
        replies += [Changes(2, changes), Changes(1, ()), Changes(5, changes[:2], snapshot=True)]
        return [body_of(each) for each in replies]


def check_offering(data: bytes) -> bool:
    """Decode an offer's arrays from bytes of any length; returns whether they are accepted."""
    cuts = [len(data) * part // 4 for part in range(5)]
    tokens, slots, generations, checksums = (data[a:b] for a, b in itertools.pairwise(cuts))
    try:
        offering_of(OfferBlocks("p", "", tokens, data[0] if data else 0, slots, 1, generations, checksums), BLOCK)
    except MessageError:
        return False
    return True


def quiet() -> None:
    """Turn off the log of refusals: there are millions."""
    for name in ("kvmarket", "kvmarket.service"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    counters._counts.clear()
