"""The checksum of a block: 64 bits over its packed bytes, the same in whatever layout the block lies.

A block's packed bytes are 32-bit words ``w[0], w[1], ...``. Its checksum is ``SEED + sum(w[i] * key(i))`` mod 2**64
with ``key(i) = i * KEY_STEP + FIRST_KEY`` mod 2**32, which is odd: multilinear hashing (Lemire and Kaser, "Strongly
universal string hashing is fast", 2014) with a Weyl sequence for keys. It always detects damage to one word and two
exchanged words within 8 GiB; it misses about one in 2**64 of other damages. The order of the summands does not matter:
any number of programs may add their tiles. The checksum guards against faults, not against forgers.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from kvmarket.layout.paged import SlotArray

UInt64s: TypeAlias = npt.NDArray[np.uint64]
KEY_STEP = 0x3C6EF362
FIRST_KEY = 0x1E3779B1
SEED = 0x9E3779B97F4A7C15  # so that a block of zeros has a checksum that is not zero
NONE = 0  # stands for "no checksum"


def finish(sums: torch.Tensor | npt.NDArray[np.int64]) -> UInt64s:
    """Turn the sums of a copy, (blocks,) int64 in host memory, into checksums."""
    checksums: UInt64s = np.asarray(sums).view(np.uint64) + np.uint64(SEED)
    return checksums


def agree(found: UInt64s, expected: UInt64s) -> npt.NDArray[np.bool_]:
    """Say for each block whether its checksum is the expected one; true where NONE is expected."""
    same: npt.NDArray[np.bool_] = (found == expected) | (expected == NONE)
    return same


def checksum_reference(array: SlotArray, slots: torch.Tensor) -> torch.Tensor:
    """Return the sums (without SEED) of blocks ``slots`` of any array on a CPU: (blocks,) int64.

    A slot must be a whole number of 32-bit words. Costs about 3 ns a word.
    """
    words = array.layout.slot_bytes // 4
    keys = np.arange(words, dtype=np.uint32) * np.uint32(KEY_STEP) + np.uint32(FIRST_KEY)
    sums = np.zeros(len(slots), np.uint64)
    for index, slot in enumerate(slots.tolist()):
        parts = [view[slot].contiguous().view(-1).view(torch.uint8).numpy() for view in array.part_views()]
        packed = np.concatenate(parts).view(np.uint32)
        sums[index] = np.sum(packed.astype(np.uint64) * keys.astype(np.uint64), dtype=np.uint64)
    return torch.from_numpy(sums.view(np.int64))
