"""A thread that waits for the end of processes, for whoever must act on it though nobody calls him."""

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
SOON_SECONDS = 0.02  # after which whoever had not finished is called again


class ProcessWatch:
    """Calls `on_death` with the processes that died, within some ms, on a thread of its own.

    The thread lives while there are processes to watch, and uses no CPU while nobody dies. Each process takes a
    descriptor, and the thread one; a process for which none is left is looked at every `LOOK_SECONDS` instead, which is
    counted. So is one of another PID namespace, which is not. Dropping the watch ends it.
    """

    def __init__(self, on_death: Callable[[frozenset[Watched]], bool]) -> None:
        """Watch nobody yet.

        `on_death`, a bound method, whose object is not kept alive, says whether all is done that the deaths call for:
        else it is called again soon, with nobody.
        """
        self._on_death = weakref.WeakMethod(on_death)
        self._turn = threading.Lock()
        self._loops: list[_Loop] = []  # the one that runs, if one does
        self._thread: threading.Thread | None = None
        weakref.finalize(self, _end, self._loops).atexit = False

    def watch(self, processes: Collection[Watched]) -> None:
        """Watch these from now on, and no others. Costs some us, and starts the thread where there is none."""
        with self._turn:
            if self._loops:
                self._loops[0].wanted = frozenset(processes)
                self._loops[0].wake()
                if not processes:
                    self._loops.pop().end()
            elif processes:
                loop = _Loop(self._on_death, frozenset(processes))
                thread = started(loop.run, "kvmarket-peers", "watch_delayed")
                if thread is not None:
                    self._loops.append(loop)
                    self._thread = thread

    def close(self) -> None:
        """Watch nobody any more; the thread has ended when this returns. May be called twice, on that thread too."""
        self.watch(())
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _end(loops: list[_Loop]) -> None:
    for loop in loops:
        loop.end()


class _Loop:
    """What the thread runs: it holds no reference to the watch, so that dropping that ends the thread."""

    def __init__(
        self, on_death: weakref.WeakMethod[Callable[[frozenset[Watched]], bool]], wanted: frozenset[Watched]
    ) -> None:
        self.wanted = wanted
        self._on_death = on_death
        self._ended = False
        self._unfinished = False
        self._dead: set[Watched] = set()  # seen, not told of yet
        self._told: set[Watched] = set()
        self._pidfds: dict[Watched, int] = {}
        self._wake_fd = -1  # an eventfd; -1 until there is one
        self._turn = threading.RLock()  # nobody writes to a descriptor that was closed

    def wake(self) -> None:
        """Have the thread look at `wanted`."""
        with self._turn:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def end(self) -> None:
        """Have the thread end. Never waits."""
        self._ended = True
        self.wake()

    def run(self) -> None:
        """Until the end, and until all is done that deaths called for."""
        try:
            while not self._ended or self._unfinished:
                with survived("the watch over peers' processes") as turn:
                    self._look()
                if turn.failed:
                    time.sleep(LOOK_SECONDS)
        finally:
            with self._turn:
                wake, self._wake_fd = self._wake_fd, -1
            for fd in (wake, *self._pidfds.values()):
                if fd >= 0:
                    os.close(fd)
            self._pidfds.clear()

    def _look(self) -> None:
        """Wait until a process dies, or others are wanted; tell of the dead."""
        blind = self._open()
        timeout = SOON_SECONDS if self._unfinished else LOOK_SECONDS if blind or self._wake_fd < 0 else None
        ready = self._wait(list(self._pidfds.values()), timeout) if not self._dead else ()
        self._dead.update(process for process, fd in self._pidfds.items() if fd in ready)
        self._dead.update(process for process in blind if not process.alive())
        if self._dead or self._unfinished:
            on_death = self._on_death()
            self._unfinished = on_death is not None and not on_death(frozenset(self._dead))
            self._told |= self._dead
            self._dead.clear()

    def _open(self) -> list[Watched]:
        """Have a descriptor for each process that is wanted, and for no other; those for which there is none."""
        with self._turn:
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
                if not process.alive():  # another one may have its number by now
                    self._dead.add(process)
        return blind

    def _wait(self, pidfds: list[int], timeout: float | None) -> Collection[int]:
        """Wait for one of these descriptors, or to be woken; those that are ready."""
        poll = select.poll()
        for fd in (*pidfds, *([self._wake_fd] if self._wake_fd >= 0 else [])):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if ready.pop(self._wake_fd, 0):
            os.eventfd_read(self._wake_fd)
        return ready
