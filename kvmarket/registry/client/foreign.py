"""Pools of engines in other PID namespaces: their descriptors come over the market's socket, and are held here."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.processes.shared_file import Process, SharedFile, watch_by, watch_no_more
from kvmarket.processes.watching import watch
from kvmarket.registry.protocol.descriptors import MOST_DESCRIPTORS, close_all
from kvmarket.registry.protocol.messages import AskDescriptors, Descriptors, PoolRecord, pack_message
from kvmarket.registry.protocol.packets import PacketSocket

Memory = Callable[[str], tuple[Sequence[Process], Sequence[SharedFile]]]  # pool -> its processes and its files
ASK_SECONDS = 1.0  # until descriptors that have not come are asked for again


class ForeignPools:
    """Descriptors of pools that cannot be opened by their owners' process numbers. Thread-safe.

    For each pool: a pidfd of every owner, then its shared files in the order of its descriptor. Open until the pool
    leaves the market.
    """

    def __init__(self, memory: Memory) -> None:
        """Start without descriptors. `memory` returns processes and files of a pool of ours; nothing for others."""
        self._memory = memory
        self._lock = threading.Lock()
        self._lacking: dict[str, float] = {}  # pool -> when to ask for it
        self._coming: dict[str, dict[int, list[int]]] = {}  # pool -> number of the first -> descriptors so far
        self._held: dict[str, tuple[int, ...]] = {}
        self._processes: dict[str, list[Process]] = {}  # owners of pools whose descriptors are held or have not come

    def look(self, new: Iterable[PoolRecord], socket: PacketSocket, now: float) -> bool:
        """Ask for descriptors of `new` pools in other PID namespaces, and again for missing ones where that is due.

        Returns whether any is missing. Costs less than 1 us for each pool that is new or missing.
        """
        for record in new:
            if record.pool not in self._processes and not all(process.near for process in record.processes):
                self._processes[record.pool] = list(dict.fromkeys(record.processes))
                self._lacking[record.pool] = -math.inf
        for name, due in self._lacking.items():
            if now >= due:
                self._lacking[name] = now + ASK_SECONDS
                socket.send(pack_message(AskDescriptors(name)))
        return bool(self._lacking)

    def of(self, pool: str) -> tuple[int, ...] | None:
        """The descriptors of a pool's shared files; None if they have not come yet. They stay ours."""
        held = self._held.get(pool)
        return held and held[len(self._processes[pool]) :]

    def heard(self, told: Descriptors, came: list[int]) -> None:
        """Keep descriptors that have come. Takes ownership of them."""
        with self._lock:
            wanted = told.pool in self._lacking
            if not wanted or len(came) != told.count:
                close_all(came)  # they are asked for again
                return
            parts = self._coming.setdefault(told.pool, {})
            close_all(parts.pop(told.first, ()))
            parts[told.first] = came
            if sum(map(len, parts.values())) == told.total:
                del self._coming[told.pool], self._lacking[told.pool]
                held = self._held[told.pool] = tuple(fd for first in sorted(parts) for fd in parts[first])
                for process, pidfd in zip(self._processes[told.pool], held, strict=False):
                    watch_by(process, pidfd)

    def answer(self, ask: AskDescriptors, socket: PacketSocket) -> None:
        """Send the descriptors of a pool of ours. If they cannot be opened now, sends none: the other side asks again.

        Costs 50 us a descriptor.
        """
        processes, files = self._memory(ask.pool)
        opened: list[int] = []
        try:
            for process in dict.fromkeys(processes):
                opened.append(watch(process))
            for file in files:
                opened.append(file.open())
            for first in range(0, len(opened), MOST_DESCRIPTORS):
                told = Descriptors(ask.pool, first, len(opened))
                socket.send(pack_message(told), opened[first : first + MOST_DESCRIPTORS])
        except KVMarketError as error:
            counters.add("descriptors_not_sent", reason=type(error).__name__, detail=error)
        finally:
            close_all(opened)

    def forget(self, pools: Iterable[str]) -> None:
        """Close the descriptors of pools that have left."""
        with self._lock:
            for pool in pools:
                self._lacking.pop(pool, None)
                held = self._held.pop(pool, ())
                for pidfd in held[: len(self._processes.pop(pool, ()))]:
                    watch_no_more(pidfd)
                close_all(held)
                for part in self._coming.pop(pool, {}).values():
                    close_all(part)

    def close(self) -> None:
        """Close all descriptors, and drop the `memory` callback."""
        self._memory = _none
        self.forget([*self._held, *self._coming])


def _none(pool: str) -> tuple[Sequence[Process], Sequence[SharedFile]]:
    return (), ()
