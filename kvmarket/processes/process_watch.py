"""A thread that waits for processes to die and calls back, so that their memory can be unmapped without a fetch."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Collection

from kvmarket import counters
from kvmarket.processes.relayed import Relayed
from kvmarket.processes.shared_file import Process
from kvmarket.support.supervised import survived
from kvmarket.support.threads import started

Watched = Process | Relayed
LOOK_SECONDS = 1.0  # how often a process is looked at for which there is no descriptor
SOON_SECONDS = 0.02  # until `on_death` is called again after it returned False


class ProcessWatch:
    """Calls `on_death` with the processes that died, within a few ms, on a thread of its own.

    The thread lives while there are processes to watch, and uses no CPU while none dies. It holds one descriptor, and
    one per process. If no descriptor is left for a process, the thread looks at that process every `LOOK_SECONDS`,
    and counts this as ``watch_delayed``. A process of another PID namespace is always looked at every `LOOK_SECONDS`.
    Dropping the last reference to the watch ends the thread.
    """

    def __init__(self, on_death: Callable[[frozenset[Watched]], bool]) -> None:
        """Make a watch of no processes yet.

        `on_death` is a bound method, whose object is not kept alive. It returns whether it has finished the work for
        these deaths. If not, it is called again after `SOON_SECONDS`, with an empty set.
        """
        self._on_death = weakref.WeakMethod(on_death)
        self._lock = threading.Lock()
        self._loops: list[_Loop] = []  # the running loop, or none
        self._thread: threading.Thread | None = None
        weakref.finalize(self, _end, self._loops).atexit = False

    def watch(self, processes: Collection[Watched], every: float = 0.0) -> None:
        """Watch exactly these processes from now on. Costs a few us; starts the thread if there is none.

        `every`: `on_death` is also called when nobody has died, again and again after so many seconds; 0: it is not.
        """
        with self._lock:
            if self._loops:
                self._loops[0].every = every
                self._loops[0].wanted = frozenset(processes)
                self._loops[0].wake()
                if not processes:
                    self._loops.pop().end()
            elif processes:
                loop = _Loop(self._on_death, frozenset(processes), every)
                thread = started(loop.run, "kvmarket-peers", "watch_delayed")
                if thread is not None:
                    self._loops.append(loop)
                    self._thread = thread

    def close(self) -> None:
        """Stop watching, and wait until the thread has ended (unless called on it). May be called again."""
        self.watch(())
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _end(loops: list[_Loop]) -> None:
    for loop in loops:
        loop.end()


class _Loop:
    """What the thread runs. It holds no reference to its `ProcessWatch`, so that dropping the watch ends the thread."""

    def __init__(
        self,
        on_death: weakref.WeakMethod[Callable[[frozenset[Watched]], bool]],
        wanted: frozenset[Watched],
        every: float,
    ) -> None:
        self.wanted, self.every = wanted, every
        self._on_death = on_death
        self._ended = False
        self._unfinished = False
        self._dead: set[Watched] = set()  # seen to be dead, `on_death` not called yet
        self._told: set[Watched] = set()  # `on_death` was called
        self._pidfds: dict[Watched, int] = {}
        self._wake_fd = -1  # an eventfd; -1 until there is one
        self._lock = threading.RLock()  # held while `_wake_fd` is used, so that a closed descriptor is never written

    def wake(self) -> None:
        """Have the thread look at `wanted` and `every`."""
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def end(self) -> None:
        """Have the thread end. Never waits."""
        self._ended = True
        self.wake()

    def run(self) -> None:
        """Run until `end` is called and `on_death` has finished its work."""
        try:
            while not self._ended or self._unfinished:
                with survived("the watch over peers' processes") as turn:
                    self._look()
                if turn.failed:
                    time.sleep(LOOK_SECONDS)
        finally:
            with self._lock:
                wake, self._wake_fd = self._wake_fd, -1
            for fd in (wake, *self._pidfds.values()):
                if fd >= 0:
                    os.close(fd)
            self._pidfds.clear()

    def _look(self) -> None:
        """Wait until a process dies, `wanted` changes or `every` has passed, then call `on_death` for the dead."""
        blind = self._open()
        timeout = SOON_SECONDS if self._unfinished else LOOK_SECONDS if blind or self._wake_fd < 0 else None
        if self.every:
            timeout = min(self.every, self.every if timeout is None else timeout)
        ready = self._wait(list(self._pidfds.values()), timeout) if not self._dead else ()
        self._dead.update(process for process, fd in self._pidfds.items() if fd in ready)
        self._dead.update(process for process in blind if not process.alive())
        if self._dead or self._unfinished or self.every:
            on_death = self._on_death()
            self._unfinished = on_death is not None and not on_death(frozenset(self._dead))
            self._told |= self._dead
            self._dead.clear()

    def _open(self) -> list[Watched]:
        """Hold a pidfd for each wanted process and for no other; return the processes that have none."""
        with self._lock:
            if self._wake_fd < 0 and not self._ended:
                try:
                    self._wake_fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                except OSError as error:
                    counters.add("watch_delayed", reason=f"no descriptor: {error.strerror}")
        self._told &= self.wanted
        wanted = self.wanted - self._told
        blind: list[Watched] = []
        for process in self._pidfds.keys() - wanted:
            os.close(self._pidfds.pop(process))
        for process in wanted - self._pidfds.keys():
            if isinstance(process, Relayed):
                blind.append(process)
                continue
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                self._dead.add(process)
            except OSError as error:
                counters.add("watch_delayed", reason=f"no descriptor: {error.strerror}")
                blind.append(process)
            else:
                self._pidfds[process] = fd
                if not process.alive():  # another process may have its number by now
                    self._dead.add(process)
        return blind

    def _wait(self, pidfds: list[int], timeout: float | None) -> Collection[int]:
        """Wait until one of these descriptors is ready or `wake` is called; return the ready ones."""
        poll = select.poll()
        for fd in (*pidfds, *([self._wake_fd] if self._wake_fd >= 0 else [])):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if ready.pop(self._wake_fd, 0):
            os.eventfd_read(self._wake_fd)
        return ready
