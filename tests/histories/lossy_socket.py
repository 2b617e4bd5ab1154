"""A fake connection between two ends in one process that drops, doubles, delays, reorders and tears messages."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

FAULTS = ("drop", "double", "delay", "reorder", "tear", "glue")


@dataclass
class Weather:
    """The state of a connection's faults: the chance of each one per message, and how many bytes a queue takes."""

    chance: random.Random
    faults: dict[str, float]
    room: int = 1 << 30

    def fault(self) -> str:
        """Draw the fault of the next message; mostly none (empty)."""
        draw = self.chance.random()
        for fault, odds in self.faults.items():
            draw -= odds
            if draw < 0:
                return fault
        return ""


class Hop:
    """The queue of messages in one direction."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.queue: deque[bytes] = deque()
        self.late: list[bytes] = []

    def put(self, frame: bytes) -> None:
        """Send a message; a random fault may happen to it."""
        chance = self.weather.chance
        match self.weather.fault():
            case "drop":
                return
            case "double":
                self.queue.append(frame)
                self.queue.insert(chance.randrange(len(self.queue) + 1), frame)
            case "delay":
                self.late.append(frame)
            case "reorder":
                self.queue.insert(chance.randrange(len(self.queue) + 1), frame)
            case "tear":
                self.queue.append(frame[: chance.randrange(len(frame))])
            case "glue" if self.queue:
                last = self.queue.pop()
                self.queue.append(last[: chance.randrange(len(last) + 1)] + frame[chance.randrange(len(frame)) :])
            case _:
                self.queue.append(frame)

    def arrive_late(self) -> None:
        """Put the delayed messages into the queue."""
        self.queue.extend(self.late)
        self.late.clear()


class LossySocket:
    """One end of the connection, with the methods of `kvmarket.registry.protocol.packets.PacketSocket`."""

    def __init__(self, out: Hop, into: Hop) -> None:
        self.out, self.into = out, into
        self.closed = False
        self.peer: LossySocket | None = None
        self.blocked, self.events = False, 0

    @property
    def waiting(self) -> int:
        """Bytes that the other end has not read; more than any limit if the queue has no room."""
        size = sum(map(len, self.out.queue))
        return size if size < self.out.weather.room else 1 << 40

    def send(self, frame: bytes) -> bool:
        if self.closed:
            return False
        self.out.put(frame)
        return True

    def receive(self) -> bytes | None:
        return self.into.queue.popleft() if self.into.queue and not self.closed else None

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        if self.peer is not None:
            self.peer.closed = True


def connection(weather: Weather) -> tuple[LossySocket, LossySocket]:
    """Both ends of a new connection."""
    there, back = Hop(weather), Hop(weather)
    ours, theirs = LossySocket(there, back), LossySocket(back, there)
    ours.peer, theirs.peer = theirs, ours
    return ours, theirs
