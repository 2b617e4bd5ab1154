"""Reusable buffers for the slot ids and the sums of a pull: a pull takes one, and gives it back when it is done.

Allocating a buffer for each pull would cost the calling thread about 50 us.
"""

from __future__ import annotations

import torch

from kvmarket.ways.gpu import copy_engine

FEW = 64  # up to so many blocks the kernel reads the ids from host memory, which saves a copy of 10 us before it
MANY = 2048  # the same where the kernel moves at least WIDE bytes for each id that it reads
WIDE = 32768
UNITS = 4096  # up to so many sums the kernel writes to host memory, which saves zeroing before it and a copy after it


class Buffer:
    """Pinned host memory for a short pull: the kernel reads its slot ids there and writes its sums there.

    ``ids``: int64, source slots, then our own. ``found``: int64, the sums. ``source_slots`` and ``sums`` are addresses.
    """

    size = MANY

    def __init__(self) -> None:
        host = torch.empty(2 * MANY + UNITS, dtype=torch.int64, pin_memory=True)
        self.ids, self.found = host[: 2 * MANY].numpy(), host[2 * MANY :].numpy()  # these views keep `host` alive
        self.source_slots, self.sums = host.data_ptr(), host.data_ptr() + 16 * MANY


class LongBuffer:
    """As `Buffer`, for more blocks: the kernel uses device memory, which is copied from and to pinned host memory."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Allocate for up to ``size`` blocks."""
        self.size = size
        self._host = torch.empty(3 * size, dtype=torch.int64, pin_memory=True)
        self._device = torch.empty(3 * size, dtype=torch.int64, device=device)
        self.ids, self.found = self._host[: 2 * size].numpy(), self._host[2 * size :].numpy()
        self.source_slots, self.sums = self._device.data_ptr(), self._device.data_ptr() + 16 * size

    def bring_ids(self, blocks: int, stream: int) -> None:
        """Copy the ids to the device on the raw ``stream``: ``blocks`` source slots, then as many of our own slots."""
        copy_engine.copy_range(self.source_slots, self._host.data_ptr(), 16 * blocks, stream)

    def zero_sums(self, blocks: int, stream: int) -> None:
        """Zero the sums on the device, on the raw ``stream``."""
        copy_engine.fill_zero(self.sums, 8 * blocks, stream)

    def bring_sums(self, blocks: int, stream: int) -> None:
        """Copy the sums from the device to ``found``, on the raw ``stream``."""
        copy_engine.copy_range(self._host.data_ptr() + 16 * self.size, self.sums, 8 * blocks, stream)


class Buffers:
    """The free buffers of one mover. Thread-safe: taking and giving back are atomic."""

    def __init__(self, device: torch.device) -> None:
        """Allocate none yet. ``device``: where the kernel runs that uses them."""
        self._device = device
        self._short: list[Buffer] = []
        self._long: dict[int, list[LongBuffer]] = {}

    def short(self) -> Buffer:
        """Take a buffer for up to ``MANY`` blocks; allocate one if none is free."""
        try:
            return self._short.pop()
        except IndexError:
            return Buffer()

    def long(self, blocks: int) -> LongBuffer:
        """Take a buffer for ``blocks`` blocks; allocate one if none is free."""
        size = 1 << (blocks - 1).bit_length()
        try:
            return self._long.setdefault(size, []).pop()
        except IndexError:
            return LongBuffer(size, self._device)

    def give_back(self, buffer: Buffer | LongBuffer) -> None:
        """Give a buffer back. Nothing may read or write it any more: the next pull takes it."""
        if isinstance(buffer, Buffer):
            self._short.append(buffer)
        else:
            self._long[buffer.size].append(buffer)
