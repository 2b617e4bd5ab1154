"""Shared memory of the host for engines on GPUs: POSIX shared memory that each process locks for its GPU."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from typing import ClassVar, TypeAlias, TypeVar

import numpy as np
import torch

from kvmarket.errors import KVMarketError, NamespaceError, SharedMemoryError, TransportError
from kvmarket.processes.shared_file import SharedFile
from kvmarket.support.supervised import survived
from kvmarket.support.threads import started
from kvmarket.transport.pinned import pinned
from kvmarket.transport.shm import ShmMemory

TAKEN_SECONDS = 600.0  # until a mapping for which nobody has come again is let go
LOOK_SECONDS = 1.0  # until one of memory that its owner has given back is
E = TypeVar("E", bound=BaseException)


class HostMemory(ShmMemory, frozen=True, tag="host"):
    """As `ShmMemory`, mapped on GPUs."""

    mapped_on: ClassVar[str] = "cuda"

    @classmethod
    def takes(cls, storages: Sequence[torch.UntypedStorage]) -> bool:
        """Never: it is allocated here, see `allocate`; a cache that lies on a GPU stays there."""
        return False

    @classmethod
    def allocate(cls, nbytes: int, device: torch.device) -> tuple[torch.Tensor, HostMemory]:
        """Allocate a segment, and return it as a 1-D uint8 tensor on `device`, with its descriptor.

        Costs some 0.2 s a GiB (host of an H200, bench/lend/host.py). Raises TransportError, and SharedMemoryError where
        there is no room.
        """
        memory = torch.empty(nbytes, dtype=torch.uint8)
        named = ShmMemory.export([memory.untyped_storage()])  # moves it into shared memory
        return pinned(memory.data_ptr(), nbytes, device, memory), cls(named.files)

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map each segment on `device`. Locking takes 0.2 s a GiB, so a thread does it: call again until it is done.

        Raises TransportError until then, which counts as transient; else NamespaceError, SharedMemoryError or
        TransportError.
        """
        made = _MAPPER.take(self, device)
        if isinstance(made, KVMarketError):
            try:
                raise made
            finally:
                del made  # else this frame and the error keep one another until they are collected
        if made is None:
            reason = "locking the memory takes a while"
            raise TransportError(f"host memory is being mapped: {reason}; it is tried again") from BlockingIOError(
                errno.EAGAIN, reason
            )
        return made

    def map_ahead(self, device: torch.device) -> None:
        """Have the thread map the memory. What nobody comes for within `TAKEN_SECONDS`, or what fails, is let go."""
        if device.type == self.mapped_on:
            _MAPPER.ask(self, device)


class _Mapper:
    """One thread that maps memory for all of this process, one after another. It ends when nobody waits for any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        # In the order in which they were asked for: whether somebody waits, who is told why if it fails
        self._asked: dict[_Where, bool] = {}
        self._made: dict[_Where, tuple[float, list[torch.Tensor] | KVMarketError]] = {}  # with when it is let go

    def ask(self, memory: HostMemory, device: torch.device) -> None:
        """Have memory mapped, unless it is already."""
        where = memory, device
        with self._lock:
            if where not in self._made:
                self._want(where, waited=False)

    def take(self, memory: HostMemory, device: torch.device) -> list[torch.Tensor] | KVMarketError | None:
        """What was mapped, or why it cannot be. None if that is not known yet; then asks for it."""
        where = memory, device
        with self._lock:
            _, made = self._made.pop(where, (0.0, None))
            if made is None:
                self._want(where, waited=True)
            self._wake.notify()
        return made

    def _want(self, where: _Where, *, waited: bool) -> None:
        """Add to what is asked for, and see that the thread runs. If none is to be had, the next call tries again."""
        self._asked[where] = waited or self._asked.get(where, False)
        if self._thread is None:
            self._thread = started(self._run, "kvmarket-lock", "mapping_delayed")
        self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                useless = [
                    self._made.pop(where)
                    for where, (until, _) in list(self._made.items())
                    if until <= now or not all(file.held() for file in where[0].files)
                ]
                if not self._asked and not self._made:
                    self._thread = None
                    return
                if not self._asked and not useless:
                    self._wake.wait(min(LOOK_SECONDS, *(until - now for until, _ in self._made.values())))
                where = next(iter(self._asked), None)
            del useless  # without the lock, which every fetch may wait for: to unlock the memory takes a while
            if where is None:
                continue
            made: list[torch.Tensor] | KVMarketError = TransportError("host memory cannot be mapped; see the log")
            with survived("the thread that maps host memory"):
                made = _made(*where)
            with self._lock:
                if self._asked.pop(where) or not isinstance(made, KVMarketError):
                    self._made[where] = time.monotonic() + TAKEN_SECONDS, made
            del made


_Where: TypeAlias = tuple[HostMemory, torch.device]
_MAPPER = _Mapper()


def _made(memory: HostMemory, device: torch.device) -> list[torch.Tensor] | KVMarketError:
    """The segments of the memory, mapped; or why they cannot be."""
    try:
        return [_locked(file, device) for file in memory.files]
    except KVMarketError as error:
        return _bare(error)
    except (RuntimeError, OSError, ValueError, MemoryError) as error:
        failed = TransportError(f"host memory cannot be mapped: {error}; see kvmarket doctor")
        failed.__cause__ = _bare(error)
        return failed


def _bare(error: E) -> E:
    """The error without its frames: they would keep what was mapped until they are collected."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def _locked(file: SharedFile, device: torch.device) -> torch.Tensor:
    """Map a file and lock it for the device: for reading only, where the driver can."""
    try:
        return _mapped(file, device, writable=False)
    except TransportError as error:
        if isinstance(error, SharedMemoryError | NamespaceError):
            raise
        return _mapped(file, device, writable=True)


def _mapped(file: SharedFile, device: torch.device, *, writable: bool) -> torch.Tensor:
    memory = np.frombuffer(file.map(writable=writable), np.uint8)
    return pinned(memory.ctypes.data, memory.nbytes, device, memory, read_only=not writable)
