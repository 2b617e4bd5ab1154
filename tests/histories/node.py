"""A node in one process, driven step by step: engines with real control halves, and one exchange at a time."""

from __future__ import annotations

import logging
import random
import time
import uuid
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np

from kvmarket.errors import KVMarketError, LayoutError, RegistryError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client import client, home
from kvmarket.registry.client.connection import Connection
from kvmarket.registry.protocol import numbering
from kvmarket.registry.protocol.messages import Refused, unpack_request
from kvmarket.registry.service import stream
from kvmarket.registry.service.exchange import Exchange
from kvmarket.registry.service.session import Session
from kvmarket.registry.space import feed
from tests.histories.knowledge import unknown_in
from tests.histories.lossy_socket import FAULTS, LossySocket, Weather, connection
from tests.histories.owner import DEPTH, SLOTS, TENANTS, VOCABULARY, Engine, Held

ME = Process.current()
PATIENCE = 10  # times of 30 rounds until all is known: a fault that heals itself has healed by then


class Node:
    """Engines and a service. `step` does one random thing; `check` asserts that no match is wrong."""

    def __init__(self, seed: int, engines: int = 2, *, pools: bool = True) -> None:
        """`pools`: whether engines also add and drop pools."""
        self.chance = random.Random(seed)
        self._operations = OPERATIONS | POOL_OPERATIONS if pools else OPERATIONS
        self.weather = Weather(self.chance, dict.fromkeys(FAULTS, 0.0))
        self.exchange, self.sessions = Exchange(), list[Session]()
        self._service = ME
        self._patches = ExitStack()
        for target, name, value in (
            (home, "join_service", self._join_service),
            (client.Client, "_watch", lambda _self: None),
            (client.Client, "_settled", lambda _self, _connection, _deadline: True),
            (numbering, "ASK_SECONDS", 0.0),
            (feed, "MARK_SECONDS", 0.0),
            (feed, "MARKS_SECONDS", 0.0),
            (stream, "LINGER_SECONDS", 0.0),
        ):
            self._patches.enter_context(patch.object(target, name, value))
        self.engines = [Engine(self) for _ in range(engines)]

    def close(self) -> None:
        for engine in self.engines:
            engine.control.close()
        self._patches.close()

    def _join_service(self, _address: Any, join: Any, replica: Any, snapshot: Any, *others: Any) -> Connection:
        """Join over a new faulty connection; the join itself is never lost."""
        ours, theirs = connection(self.weather)
        joined = Connection(ours, join, replica, snapshot, others[0])  # type: ignore[arg-type]
        theirs.into.queue.clear()  # the join is given to the exchange below; after a lost one an engine tries again
        theirs.into.late.clear()
        session = Session(theirs)  # type: ignore[arg-type]
        members = self.exchange.members
        if (former := members.former(join)) is not None:
            self._hang_up(former)
        self.exchange.join(session, uuid.uuid4().hex, join)
        self.sessions.append(session)
        joined.service = self._service
        return joined

    def _hang_up(self, member: str) -> None:
        session = self.exchange.leave(member)
        if session is not None:
            session.socket.close()
            self.sessions.remove(session)

    def kill_service(self) -> None:
        """Break all connections, and begin a new exchange that knows nothing."""
        for session in self.sessions:
            session.socket.close()
        self.exchange, self.sessions = Exchange(), []
        self._service = Process(ME.pid, self._service.start + 1, ME.namespace)

    def serve(self, messages: int = 1) -> None:
        """Let the service read some messages of each member, and send what it has to send."""
        for session in list(self.sessions):
            if session.socket.closed:
                self._hang_up(session.member)
                continue
            for _ in range(messages):
                frame = session.socket.receive()
                if frame is None:
                    break
                self._hear(session, frame)
            session.ask(time.monotonic() + 1)
            if session.feed is not None:
                session.feed.mark(time.monotonic() + 1)
        self.exchange.tell(0.0)
        self.exchange.members.collect(0.0)

    def _hear(self, session: Session, frame: bytes) -> None:
        try:
            request = unpack_request(frame)
            self.exchange.hear(session, request)  # type: ignore[arg-type]
        except (RegistryError, LayoutError) as error:
            session.send(Refused(type(error).__name__, str(error)))

    def step(self) -> str:
        """Do one random thing; returns its name."""
        names, weights = zip(*self._operations.items(), strict=True)
        name = self.chance.choices(names, weights)[0]
        getattr(self, name)(self.chance.choice(self.engines))
        return name

    def publish(self, engine: Engine) -> None:
        tokens = tuple(self.chance.randrange(VOCABULARY) for _ in range(self.chance.randint(1, DEPTH)))
        engine.publish(self.chance.choice(TENANTS[: self.chance.randint(1, 2)]), tokens)

    def grow(self, engine: Engine) -> None:
        """Publish one block more of a prompt that the engine holds, as a conversation does."""
        if engine.holds:
            tenant, tokens = self.chance.choice(sorted(engine.holds.values()))
            if len(tokens) < DEPTH:
                engine.publish(tenant, (*tokens, self.chance.randrange(VOCABULARY)))

    def turn(self, engine: Engine) -> None:
        """Reuse a slot for a block of another prefix of the same length, and publish more after that block."""
        if engine.holds:
            slot, (tenant, tokens) = self.chance.choice(sorted(engine.holds.items()))
            other = (*(self.chance.choice(((0,), (1,), tokens[i : i + 1]))[0] for i in range(len(tokens) - 1)),)
            other = (*other, 1 - tokens[-1])
            engine.publish(tenant, other, last=slot)
            if len(other) < DEPTH:
                engine.publish(tenant, (*other, self.chance.randrange(VOCABULARY)))

    def retire(self, engine: Engine) -> None:
        engine.retire(self.chance.sample(range(SLOTS), self.chance.randint(1, 3)))

    def fail_closed(self, engine: Engine) -> None:
        engine.fail_closed()

    def add_pool(self, engine: Engine) -> None:
        engine.add_pool()

    def drop_pool(self, engine: Engine) -> None:
        engine.drop_pool()

    def promise(self, engine: Engine) -> None:
        if engine.promises and self.chance.random() < 0.5:
            engine.control.settle(engine.promises.pop())
        else:
            engine.promises.append(engine.control.promise(np.array([0, 1], np.int32)))

    def pump(self, engine: Engine) -> None:
        engine.pump(self.chance.randint(1, 3))

    def work(self, _engine: Engine) -> None:
        self.serve(self.chance.randint(1, 4))

    def lose_service(self, _engine: Engine) -> None:
        self.kill_service()

    def lose_connection(self, engine: Engine) -> None:
        engine.client._connection.socket.close()

    def replace(self, engine: Engine) -> None:
        """Close an engine, and start another one."""
        self.engines.remove(engine)
        engine.control.close()
        self.engines.append(Engine(self))

    def change_weather(self, _engine: Engine) -> None:
        self.weather.faults = dict.fromkeys(FAULTS, 0.0)
        for fault in self.chance.sample(FAULTS, self.chance.choice((0, 1, 1, 3))):
            self.weather.faults[fault] = self.chance.choice((0.05, 0.3, 0.6))
        self.weather.room = self.chance.choice((1 << 30, 1 << 30, 300, 0))

    def late(self, engine: Engine) -> None:
        """Let delayed messages arrive."""
        sock: LossySocket = engine.client._connection.socket
        for hop in (sock.out, sock.into):
            hop.arrive_late()

    def check(self, most: int = 3) -> None:
        """Assert that every block that a reader would take as valid is what its owner has; for `most` prompts each."""
        owners = {pool: held for engine in self.engines for pool, held in engine.held().items()}
        for reader in self.engines:
            for _ in range(most):
                tokens = tuple(self.chance.randrange(VOCABULARY) for _ in range(DEPTH))
                self._check_match(owners, reader, self.chance.choice(TENANTS), tokens)

    def _check_match(self, owners: dict[str, Held], reader: Engine, tenant: str, query: tuple[int, ...]) -> None:
        """Match with some leading blocks local, so that a dead offer among these does not hide later blocks."""
        block = self.chance.randrange(len(query))
        hit = reader.control.match(np.array(query, np.int32), tenant=tenant, first=block)
        for run in hit.runs:
            holds = owners.get(run.pool, {})
            for slot in run.slots.tolist():
                block += 1
                held = holds.get(slot)
                assert held == (tenant, query[:block]), f"WRONG: {held} taken for {(tenant, query[:block])}"

    def catch_up(self, rounds: int) -> None:
        """Let engines and service read all messages, delayed ones too, so many times."""
        for _ in range(rounds):
            for engine in self.engines:
                self.late(engine)
                engine.client._connection._refused_at = min(engine.client._connection._refused_at, 1e-9)
                engine.pump(4)
            self.serve(8)

    def calm_down(self) -> None:
        """End all faults, and assert that every engine soon knows all live offers and nothing else.

        After bad weather hundreds of messages may wait, and each one that is heard asks for a full snapshot.
        """
        self.weather.faults, self.weather.room = dict.fromkeys(FAULTS, 0.0), 1 << 30
        for _ in range(PATIENCE):
            self.catch_up(30)
            self.check(most=100)
            if not (unknown := unknown_in(self.exchange, self.engines)):
                return
        raise AssertionError(unknown)


OPERATIONS = {
    "publish": 12,
    "grow": 12,
    "turn": 8,
    "retire": 3,
    "fail_closed": 0.5,
    "promise": 1,
    "pump": 20,
    "work": 20,
    "lose_service": 0.5,
    "lose_connection": 0.7,
    "replace": 0.3,
    "change_weather": 2,
    "late": 3,
}
POOL_OPERATIONS = {"add_pool": 2, "drop_pool": 1}


def run(seed: int, steps: int = 40, engines: int = 2, *, settle: bool = True, pools: bool = True) -> None:
    """Run one history; with `settle` all faults end at last, and everything must become right.

    Raises AssertionError if something is wrong. No KVMarketError may be raised.
    """
    node = Node(seed, engines, pools=pools)
    try:
        for _ in range(steps):
            node.step()
            node.check()
        node.catch_up(4)
        node.check(most=40)
        if settle:
            node.calm_down()
    except KVMarketError as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    finally:
        node.close()


CHUNK = 50  # histories of one `run_chunk`


def run_chunk(job: tuple[int, int, int]) -> list[str]:
    """Run `CHUNK` histories in a process of a pool: (first seed, steps, engines); returns what went wrong."""
    logging.disable(logging.CRITICAL)
    first, steps, engines = job
    found = []
    for seed in range(first, first + CHUNK):
        try:
            run(seed, steps, engines)
        except AssertionError as error:
            found.append(f"seed {seed}: {error}")
    return found
