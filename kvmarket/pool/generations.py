"""Generations: one 64-bit counter per slot and one epoch per pool, in shared memory. They decide which bytes count.

Memory layout, in native 8-byte words: magic, slots, epoch, reserved x 5, then one generation per slot.

One process, the owner, writes the words with single aligned 8-byte stores: assigning an element of an aligned numpy
array is one such store; ``struct.pack_into`` is not, a reader could see zero in between. All other processes map the
words read-only. A reader never accepts wrong bytes because of this order:

* the owner raises a generation *before* it launches anything that overwrites the slot;
* the reader loads the generation *after* its copy has completed, and compares it with the one in the offer.

x86 makes stores visible in program order, and a store visible before the doorbell write of a later launch. Other
processors are refused.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import threading
from collections.abc import Sequence

import numpy as np

from kvmarket.errors import PlatformError, SharedMemoryError
from kvmarket.pool.slots import Slots, UInt64s, check_slots
from kvmarket.processes.shared_file import SharedFile
from kvmarket.support.flags import Flags, leading

_MAGIC = 0x4B564D4B545F3031
_HEADER = 8
_EPOCH = 2
_SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 0x2, 0x4, 0x10  # linux/fcntl.h


class Generations:
    """The owner's side: creates the words. No other process writes them. Thread-safe."""

    def __init__(self, slots: int) -> None:
        """Create generations for `slots` slots, each 1, and epoch 1, in new anonymous shared memory.

        Costs 8 bytes a slot. Raises PlatformError on other processors than x86-64, SharedMemoryError when there is no
        memory.
        """
        if platform.machine() not in ("x86_64", "AMD64"):
            raise PlatformError(f"generations need the store order of x86-64; this machine is {platform.machine()}")
        words = _HEADER + slots
        self._fd = -1
        try:
            self._fd = os.memfd_create("kvmarket-generations", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, 8 * words)
            os.posix_fallocate(self._fd, 0, 8 * words)
            self._map = mmap.mmap(self._fd, 8 * words)
        except OSError as error:
            if self._fd >= 0:
                os.close(self._fd)
            raise SharedMemoryError(
                f"no shared memory for {slots} generations: {error.strerror}; free some memory, or raise the limit of "
                "open files (ulimit -n)"
            ) from error
        self._words = np.frombuffer(self._map, np.uint64)
        self._slots = self._words[_HEADER:]
        self._words[1] = slots
        self._words[_EPOCH] = 1
        self._slots[:] = 1
        self._words[0] = _MAGIC
        _seal(self._fd)
        self.slots = slots
        self._lock = threading.Lock()

    @property
    def file(self) -> SharedFile:
        """The descriptor by which other processes map the words."""
        return SharedFile.of(self._fd, 8 * (_HEADER + self.slots))

    @property
    def epoch(self) -> int:
        """The pool's current epoch."""
        return int(self._words[_EPOCH])

    def read(self, slots: Slots) -> UInt64s:
        """The current generation of each slot, as a copy. Costs a few us."""
        return self._slots[slots]

    def still(self, slots: Slots, generations: UInt64s) -> int:
        """Number of leading slots that still have these generations."""
        return leading(self._slots[slots] == generations)

    def raise_slots(self, slots: Slots) -> None:
        """Raise the generation of each slot: every earlier offer of it is dead when this returns. Costs a few us.

        Only `OwnPool.kill` calls this.
        """
        with self._lock:
            self._slots[slots] += np.uint64(1)

    def raise_epoch(self) -> None:
        """Raise the epoch: every earlier offer of the pool is dead when this returns."""
        with self._lock:
            self._words[_EPOCH] += np.uint64(1)

    def as_slots(self, slots: Sequence[int] | Slots) -> Slots:
        """Slot ids as an int64 array. Raises SlotError unless all are integers in range and none is repeated."""
        return check_slots(slots, self.slots)

    def close(self) -> None:
        """Raise the epoch, so that all offers are dead, and close our descriptor. May be called twice.

        Readers that mapped the words still see them; the kernel frees the memory with the last mapping.
        """
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            self.raise_epoch()
            os.close(fd)


class GenerationReader:
    """A reader's side: a read-only mapping of another process' words. It outlives the owner."""

    def __init__(self, file: SharedFile, slots: int) -> None:
        """Map the words that `file` names. Raises SharedMemoryError unless they are generations of `slots` slots.

        Raises NamespaceError where `file` cannot be opened from our PID namespace.
        """
        if file.nbytes != 8 * (_HEADER + slots):
            raise SharedMemoryError(
                f"generations of {slots} slots need {8 * (_HEADER + slots)} bytes, not {file.nbytes}"
            )
        self._map = file.map()
        self._words = np.frombuffer(self._map, np.uint64)
        if self._words[0] != _MAGIC or self._words[1] != slots:
            raise SharedMemoryError("the shared file holds no generations of this pool; its offers are ignored")
        self._slots = self._words[_HEADER:]
        self.slots = slots

    @property
    def epoch(self) -> int:
        """The pool's current epoch."""
        return int(self._words[_EPOCH])

    def valid(self, epoch: int, slots: Slots, generations: UInt64s) -> Flags:
        """For each slot, whether slot and pool still have the generation and the epoch of the offer.

        Call it after the copy has completed. Slots must be in range. Costs a few us.
        """
        same: Flags = self._slots.take(slots) == generations
        return same if self.epoch == epoch else np.zeros_like(same)


def _seal(fd: int) -> None:
    """Forbid changes of the file's size and, from kernel 5.1 on, any further writable mapping."""
    for seals in (_SEAL_SHRINK | _SEAL_GROW | _SEAL_FUTURE_WRITE, _SEAL_SHRINK | _SEAL_GROW):
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            continue
        return
