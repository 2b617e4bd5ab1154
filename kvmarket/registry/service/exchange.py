"""What the service does with what its members say, and what it tells them. No sockets, no processes."""

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
    """Members, by their sessions, and what they hear of each other. Not thread-safe."""

    def __init__(self) -> None:
        """Nobody has joined."""
        self.members = Members()
        self.heard: Counter[str] = Counter()  # by kind
        self._sessions: dict[str, Session] = {}  # of members
        self._streams: dict[str, Stream] = {}  # space -> what its members hear

    def join(self, session: Session, name: str, join: Join) -> None:
        """Let the engine of a session in, which is nobody's yet, as member `name`; a snapshot for it is due.

        Raises RefusedError or LayoutError, and does nothing then.
        """
        self.members.join(name, join)
        session.member, self._sessions[name] = name, session
        stream = self._streams.setdefault(join.space, Stream())
        for record in join.pools:
            stream.add(PoolJoined(record), session)
        space, own = self.members.spaces[join.space], frozenset(record.pool for record in join.pools)
        session.feed = Feed(session.socket, partial(SnapshotParts, (space,), own, records=True))
        stream.feeds[session] = session.feed

    def leave(self, name: str) -> Session | None:
        """Take a member out with all its offers, and tell the others; its session, None where it is no member."""
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
        """The connection of the engine that has a pool of the same space as that of `session`; None where none has.

        Raises NotJoinedError where `session` is nobody's.
        """
        if session.member not in self._sessions:
            raise NotJoinedError("a message of somebody who has not joined; join (again)")
        name = self.members.owner(pool)
        if name is None or self.members.by_name[name].space is not self.members.by_name[session.member].space:
            return None
        return self._sessions[name]

    def hear(self, session: Session, message: Changes | Again | Report) -> None:
        """Do what a member says, where nothing is missing before it.

        Raises NotJoinedError where it is none, MessageError for what cannot be done, MissingBlockError for an offer
        that goes on from a block which is not on offer: the engine may tell all of it again.
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
        """Tell members what has changed, and the next part of snapshots, for so long; whether there is more to tell."""
        for stream in self._streams.values():
            behind = [feed for feed in stream.feeds.values() if feed.ready]
            if behind or stream.due() <= 0:
                stream.flush()  # a snapshot tells what is so now: nothing that was so before may come behind it
            end = time.monotonic() + seconds
            for feed in behind:
                feed.go_on()
                if time.monotonic() > end:
                    break
        return any(feed.ready for stream in self._streams.values() for feed in stream.feeds.values())

    def due(self) -> float:
        """In how many seconds `tell` should be called, where nothing comes meanwhile."""
        return min((stream.due() for stream in self._streams.values()), default=float("inf"))

    def _put_in(self, session: Session, change: object) -> None:
        self.heard[type(change).__name__] += 1
        if not isinstance(change, News):
            raise MessageError(f"a {type(change).__name__} from an engine; only the service says that")
        stream = self._streams[self.members.by_name[session.member].join.space]
        try:
            for heard in self.members.hear(session.member, change):
                stream.add(heard, session)
        except MissingBlockError:
            if not self.members.telling(session.member):  # else its snapshot comes to it yet
                raise
