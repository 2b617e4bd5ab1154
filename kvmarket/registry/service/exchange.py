"""Applies the messages of members to the market, and sends the changes to the other members. No processes."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

from kvmarket.errors import MessageError, MissingBlockError, NotJoinedError
from kvmarket.registry.protocol.messages import Again, Changes, Join, News, PoolGone, PoolJoined
from kvmarket.registry.protocol.status import Report
from kvmarket.registry.service.members import Members
from kvmarket.registry.service.session import Session
from kvmarket.registry.service.stream import Stream
from kvmarket.registry.space.feed import Feed
from kvmarket.registry.space.snapshot import SnapshotParts


class Exchange:
    """The members with their sessions, and one stream of changes per space. Not thread-safe."""

    def __init__(self) -> None:
        """Start without members."""
        self.members = Members()
        self.heard: Counter[str] = Counter()  # number of changes received, by kind
        self._sessions: dict[str, Session] = {}  # member -> its session
        self._streams: dict[str, Stream] = {}  # space -> the changes for its members

    def join(self, session: Session, name: str, join: Join) -> None:
        """Make the engine of `session` the member `name`; `tell` will send it a snapshot.

        The session must not have a member yet. Raises RefusedError or LayoutError, and then changes nothing.
        """
        self.members.join(name, join)
        session.member, self._sessions[name] = name, session
        stream = self._streams.setdefault(join.space, Stream())
        for record in join.pools:
            stream.add(PoolJoined(record), session)
        session.feed = Feed(session.socket, partial(self._snapshot, name))
        stream.feeds[session] = session.feed

    def leave(self, name: str) -> Session | None:
        """Remove a member with all its offers, and tell the others. Returns its session; None if it is not a member."""
        join, session = self.members.leave(name), self._sessions.pop(name, None)
        if join is None or session is None:
            return None
        stream = self._streams[join.space]
        stream.feeds.pop(session, None)
        for record in join.pools:
            stream.add(PoolGone(record.pool))
        if not stream.feeds:
            del self._streams[join.space]
        return session

    def owner(self, session: Session, pool: str) -> Session | None:
        """The session of the engine that owns `pool`, if it is in the same space as the engine of `session`; else None.

        Raises NotJoinedError if `session` has no member.
        """
        if session.member not in self._sessions:
            raise NotJoinedError("a message of somebody who has not joined; join (again)")
        name = self.members.owner(pool)
        if name is None or self.members.by_name[name].space is not self.members.by_name[session.member].space:
            return None
        return self._sessions[name]

    def hear(self, session: Session, message: Changes | Again | Report) -> None:
        """Apply a message of a member, or ask for a snapshot if a message before it is missing.

        Raises NotJoinedError if the session has no member, MessageError for a change that cannot be applied, and
        MissingBlockError for an offer that continues a block which is not offered: the engine sends a snapshot then.
        """
        if session.feed is None or session.member not in self._sessions:
            raise NotJoinedError("a message of somebody who has not joined; join (again)")
        if isinstance(message, Again):
            session.feed.asked(message)
        elif isinstance(message, Report):
            self.members.report(session.member, message)
        elif not session.heard.accept(message):
            session.ask(time.monotonic())
        else:
            if message.snapshot:
                self.members.begin(session.member)
            for change in message.changes:
                self._put_in(session, change)

    def tell(self, seconds: float) -> bool:
        """Send changes to members, then parts of snapshots for up to `seconds`; return whether parts are left."""
        for stream in self._streams.values():
            behind = [feed for feed in stream.feeds.values() if feed.ready]
            if behind or stream.due() <= 0:
                stream.flush()  # first: a part of a snapshot holds the present state, no older change may follow it
            end = time.monotonic() + seconds
            for feed in behind:
                feed.go_on()
                if time.monotonic() > end:
                    break
        return any(feed.ready for stream in self._streams.values() for feed in stream.feeds.values())

    def due(self) -> float:
        """Seconds until `tell` should be called, if no message comes before."""
        return min((stream.due() for stream in self._streams.values()), default=float("inf"))

    def _snapshot(self, name: str) -> SnapshotParts:
        """What member `name` must know of the others."""
        member = self.members.by_name[name]
        return SnapshotParts((member.space,), frozenset(member.pools))

    def _put_in(self, session: Session, change: object) -> None:
        self.heard[type(change).__name__] += 1
        if not isinstance(change, News):
            raise MessageError(f"a {type(change).__name__} from an engine; only the service says that")
        stream = self._streams[self.members.by_name[session.member].join.space]
        try:
            for heard in self.members.hear(session.member, change):
                stream.add(heard, session)
        except MissingBlockError:
            if not self.members.telling(session.member):  # else a later part of its snapshot holds the block
                raise
