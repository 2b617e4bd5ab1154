"""The kernel that reads tensors on their own device and computes the sum of each MiB; pieces.py defines the sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from kvmarket.kernels import checksum, pieces
from kvmarket.kernels.checksum import UInt64s
from kvmarket.kernels.pieces import PIECE_BYTES
from kvmarket.kernels.tile import INTERPRETER

STEP_WORDS, WARPS = 4096, 8  # of a program: words that it reads at a time, and its warps
KEY_STEP, FIRST_KEY = tl.constexpr(checksum.KEY_STEP), tl.constexpr(checksum.FIRST_KEY)
FIRST_MIXER, SECOND_MIXER = tl.constexpr(pieces.MIXERS[0]), tl.constexpr(pieces.MIXERS[1])
FIRST_SHIFT, SECOND_SHIFT, THIRD_SHIFT = (tl.constexpr(shift) for shift in pieces.SHIFTS)
ALIGN = 16


@triton.jit  # type: ignore[untyped-decorator]
def weighted(words: tl.tensor, places: tl.tensor) -> tl.tensor:
    """Return what each word adds to the sum of its piece, uint64. places: the indices of the words in the piece."""
    keys = places.to(tl.uint32) * KEY_STEP + FIRST_KEY
    mixed = words ^ keys
    mixed = (mixed ^ (mixed >> FIRST_SHIFT)) * FIRST_MIXER
    mixed = (mixed ^ (mixed >> SECOND_SHIFT)) * SECOND_MIXER
    mixed = mixed ^ (mixed >> THIRD_SHIFT)
    return mixed.to(tl.uint64) * keys.to(tl.uint64)


@triton.jit(do_not_specialize=["pieces"])  # type: ignore[untyped-decorator]
def piece_sums_kernel(table: tl.tensor, sums: tl.tensor, pieces: int, WORDS: tl.constexpr, ALIGN: tl.constexpr) -> None:
    """Sum up one piece per program. table: (2, pieces) int64, addresses and lengths in bytes.

    sums: int64, one per piece. ALIGN divides all addresses: 16, or 1, which takes four times as many reads.
    """
    piece = tl.program_id(0)
    length = tl.load(table + pieces + piece).to(tl.int32)
    address = tl.load(table + piece + tl.zeros((1,), tl.int32))
    lane = tl.arange(0, WORDS)
    total = tl.zeros((WORDS,), tl.uint64)
    whole = 0
    if ALIGN > 1:
        whole = length // ALIGN * (ALIGN // 4)
        readable = tl.multiple_of(address.to(tl.pointer_type(tl.uint32), bitcast=True), ALIGN)
        for start in tl.range(0, whole, WORDS):
            place = start + lane
            words = tl.load(readable + place, mask=place < whole, other=0)
            total += tl.where(place < whole, weighted(words, place), 0)
    single = address.to(tl.pointer_type(tl.uint8), bitcast=True)
    for start in tl.range(whole, (length + 3) // 4, WORDS):
        place = start + lane
        words = tl.zeros((WORDS,), tl.uint32)
        for byte in tl.static_range(4):
            at = place * 4 + byte
            words |= tl.load(single + at, mask=at < length, other=0).to(tl.uint32) << (8 * byte)
        total += tl.where(place * 4 < length, weighted(words, place), 0)
    tl.store(sums + piece, tl.sum(total, 0).to(tl.int64, bitcast=True))


class PieceSums:
    """Computes the sums of the pieces of spans on one device, in the order in which the spans are added.

    A span is a 1-D uint8 tensor without gaps. All work is launched on the device's current stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []

    def add(self, span: torch.Tensor) -> int:
        """Keep a span for the next launch, which reads it; return its number of pieces."""
        self._waiting.append(span)
        return -(-len(span) // PIECE_BYTES)

    def launch(self) -> None:
        """Launch the sums of the spans that were added since the last launch, without waiting for them.

        One kernel for pieces whose address is a multiple of 16, one for the others.
        """
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        table = _table(spans)
        sums = torch.empty(table.shape[1], dtype=torch.int64, device=self._device)
        aligned = table[0] % ALIGN == 0
        for align, chosen in ((ALIGN, aligned), (1, ~aligned)):
            if chosen.any():
                places = torch.from_numpy(np.flatnonzero(chosen)).to(self._device)
                rows = torch.from_numpy(np.ascontiguousarray(table[:, chosen])).to(self._device)
                sums[places] = _run(rows, align)
        self._sums.append(sums)

    def take(self) -> UInt64s:
        """Return the sums of all pieces that were added, and start anew. Waits for the device."""
        self.launch()
        sums, self._sums = self._sums, []
        if not sums:
            return np.empty(0, np.uint64)
        found: UInt64s = torch.cat(sums).cpu().numpy().view(np.uint64)
        return found


def _table(spans: Sequence[torch.Tensor]) -> npt.NDArray[np.int64]:
    """Return (2, pieces) int64: the address of each piece of each span, and its length in bytes."""
    tables = []
    for span in spans:
        starts = np.arange(0, len(span), PIECE_BYTES, dtype=np.int64)
        tables.append(np.stack((span.data_ptr() + starts, np.minimum(len(span) - starts, PIECE_BYTES))))
    return np.concatenate(tables, axis=1)


def _run(table: torch.Tensor, align: int) -> torch.Tensor:
    """Launch the kernel, one program a piece, and return the sums."""
    sums = torch.empty(table.shape[1], dtype=torch.int64, device=table.device)
    with torch.cuda.device(table.device) if table.is_cuda else INTERPRETER:
        piece_sums_kernel[(len(sums),)](table, sums, len(sums), WORDS=STEP_WORDS, ALIGN=align, num_warps=WARPS)
    return sums
