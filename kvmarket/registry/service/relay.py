"""Forwards open file descriptors of a pool's memory, in the service: from the owner to engines of other PID namespaces.

Keeps no descriptor.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import AskDescriptors, Descriptors, pack_message
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.session import Session
from kvmarket.support.transient import MORE


class Relay:
    """The open requests for descriptors. Not thread-safe."""

    def __init__(self, exchange: Exchange) -> None:
        """Start without requests."""
        self._exchange = exchange
        self._asked: dict[str, list[Session]] = {}  # pool -> sessions that wait for its descriptors

    def ask(self, session: Session, ask: AskDescriptors) -> None:
        """Forward an engine's request for the memory of a pool to the owner.

        Ignored if the pool has left or is in another space. Raises NotJoinedError.
        """
        owner = self._exchange.owner(session, ask.pool)
        if owner is None:
            return  # the pool has left, which the engine learns from the stream
        waiting = self._asked.setdefault(ask.pool, [])
        if session not in waiting:
            waiting.append(session)
        owner.socket.send(pack_message(ask))

    def tell(self, session: Session, told: Descriptors, descriptors: Sequence[int]) -> None:
        """Forward descriptors from the owner of a pool to all sessions that wait for them. They stay the caller's.

        Raises MessageError if the pool is another engine's or descriptors are missing; NotJoinedError.
        """
        if self._exchange.owner(session, told.pool) is not session:
            raise MessageError(f"descriptors of pool {told.pool}, which is not one of this engine")
        if len(descriptors) != told.count:
            raise MessageError(f"{len(descriptors)} descriptors of pool {told.pool} came; {MORE}")
        message = pack_message(told)
        for each in self._asked.get(told.pool, ()):
            each.socket.send(message, descriptors)
        if told.first + len(descriptors) == told.total:
            self._asked.pop(told.pool, None)

    def forget(self, session: Session) -> None:
        """Drop the requests of a connection that has ended."""
        self._asked = {pool: left for pool, waiting in self._asked.items() if (left := _without(waiting, session))}


def _without(waiting: Sequence[Session], session: Session) -> list[Session]:
    return [each for each in waiting if each is not session]
