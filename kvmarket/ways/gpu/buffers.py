"""Memory of a pull's slot ids and of its sums: taken for one pull, given back when it is done, and used again.

Allocating it anew would cost the calling thread some 50 us a pull.
"""

from __future__ import annotations

import torch

from kvmarket.ways.gpu import copy_engine

FEW = 64  # blocks: so few ids the kernel reads from host memory, which saves a copy ahead of it, and its 10 us
MANY = 2048  # blocks: so many where it moves WIDE bytes for each id that it reads
WIDE = 32768
UNITS = 4096  # so many sums it writes to host memory, which saves zeroing some ahead of it and a copy behind it


class Buffer:
    """Pinned host memory in which a short pull has its ids and leaves its sums."""

    size = MANY

    def __init__(self) -> None:
        host = torch.empty(2 * MANY + UNITS, dtype=torch.int64, pin_memory=True)
        self.ids, self.found = host[: 2 * MANY].numpy(), host[2 * MANY :].numpy()  # they keep it alive
        self.source_slots, self.sums = host.data_ptr(), host.data_ptr() + 16 * MANY


class LongBuffer:
    """The same for more blocks: memory of the device, and pinned memory from and to which it is copied."""

    def __init__(self, size: int, device: torch.device) -> None:
        """For up to ``size`` blocks."""
        self.size = size
        self._host = torch.empty(3 * size, dtype=torch.int64, pin_memory=True)
        self._device = torch.empty(3 * size, dtype=torch.int64, device=device)
        self.ids, self.found = self._host[: 2 * size].numpy(), self._host[2 * size :].numpy()
        self.source_slots, self.sums = self._device.data_ptr(), self._device.data_ptr() + 16 * size

    def bring_ids(self, blocks: int, stream: int) -> None:
        """Copy the ids to the device on the raw ``stream``: ``blocks`` of the source, then as many of our own."""
        copy_engine.copy_range(self.source_slots, self._host.data_ptr(), 16 * blocks, stream)

    def zero_sums(self, blocks: int, stream: int) -> None:
        """Zero the sums on the device, on the raw ``stream``."""
        copy_engine.fill_zero(self.sums, 8 * blocks, stream)

    def bring_sums(self, blocks: int, stream: int) -> None:
        """Copy the sums to the host, to ``found``, on the raw ``stream``."""
        copy_engine.copy_range(self._host.data_ptr() + 16 * self.size, self.sums, 8 * blocks, stream)


class Buffers:
    """The buffers of one mover that are free. Thread-safe: taking and giving back are atomic."""

    def __init__(self, device: torch.device) -> None:
        """None yet. ``device``: where the kernel runs that reads them."""
        self._device = device
        self._short: list[Buffer] = []
        self._long: dict[int, list[LongBuffer]] = {}

    def short(self) -> Buffer:
        """A buffer for up to ``MANY`` blocks."""
        try:
            return self._short.pop()
        except IndexError:
            return Buffer()

    def long(self, blocks: int) -> LongBuffer:
        """A buffer for so many blocks."""
        size = 1 << (blocks - 1).bit_length()
        try:
            return self._long.setdefault(size, []).pop()
        except IndexError:
            return LongBuffer(size, self._device)

    def give_back(self, buffer: Buffer | LongBuffer) -> None:
        """It is another's from now on; nothing may be under way that reads or writes it."""
        if isinstance(buffer, Buffer):
            self._short.append(buffer)
        else:
            self._long[buffer.size].append(buffer)
