"""Definition of the sum of a piece of a tensor: 64 bits for each MiB.

A piece is up to `PIECE_BYTES` bytes of one tensor, read as little-endian 32-bit words ``w[0], w[1], ...`` with zeros
after the last byte. Its sum is ``sum(mixed(w[i] ^ key(i)) * key(i))`` mod 2**64, with the keys of checksum.py and a
bijection ``mixed`` of 32 bits. The sum always changes when one word changes; of other changes it misses about one in
2**62. Without ``mixed``, changes of +1, -2, +1 in three neighbouring words would cancel out: that happens in weights
that hold indices and masks. The sum tells different weights apart; it does not guard against forgers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmarket.kernels.checksum import FIRST_KEY, KEY_STEP, UInt64s

PIECE_BYTES = 1 << 20
MIXERS = (0x21F0AAAD, 0x735A2D97)  # odd, so that multiplying by them is a bijection
SHIFTS = (16, 15, 15)


def piece_sums_reference(data: npt.NDArray[np.uint8]) -> UInt64s:
    """Return the sums of the pieces of ``data``, in order. Costs about 3 ns a word."""
    sums = []
    for start in range(0, len(data), PIECE_BYTES):
        piece = data[start : start + PIECE_BYTES]
        words = np.zeros(-(-len(piece) // 4), np.uint32)
        words.view(np.uint8)[: len(piece)] = piece
        keys = np.arange(len(words), dtype=np.uint32) * np.uint32(KEY_STEP) + np.uint32(FIRST_KEY)
        mixed = words ^ keys
        for shift, mixer in zip(SHIFTS, (*MIXERS, 1), strict=True):
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(mixer)
        sums.append(np.sum(mixed.astype(np.uint64) * keys.astype(np.uint64), dtype=np.uint64))
    return np.array(sums, np.uint64)
