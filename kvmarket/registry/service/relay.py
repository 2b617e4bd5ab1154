"""Memory of pools on its way between PID namespaces: from the engine that has it to those that asked. None is kept."""

from __future__ import annotations

from collections.abc import Sequence

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import AskDescriptors, Descriptors, pack_message
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.session import Session
from kvmarket.support.transient import MORE


class Relay:
    """Who has asked for which pool. Not thread-safe."""

    def __init__(self, exchange: Exchange) -> None:
        """Nobody has asked."""
        self._exchange = exchange
        self._asked: dict[str, list[Session]] = {}  # pool -> who waits for it

    def ask(self, session: Session, ask: AskDescriptors) -> None:
        """An engine asks for the memory of a pool: its owner is asked, where it lives and is of the same space.

        Raises NotJoinedError.
        """
        owner = self._exchange.owner(session, ask.pool)
        if owner is None:
            return  # it has gone, and the engine hears of it
        waiting = self._asked.setdefault(ask.pool, [])
        if session not in waiting:
            waiting.append(session)
        owner.socket.send(pack_message(ask))

    def tell(self, session: Session, told: Descriptors, descriptors: Sequence[int]) -> None:
        """An engine tells some of the memory of its pool: whoever waits gets copies.

        Raises MessageError where the pool is another's, or not all has come that it says; NotJoinedError.
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
        """A connection has ended."""
        self._asked = {pool: left for pool, waiting in self._asked.items() if (left := _without(waiting, session))}


def _without(waiting: Sequence[Session], session: Session) -> list[Session]:
    return [each for each in waiting if each is not session]
