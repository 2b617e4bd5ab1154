"""How a slot of one layout maps to a slot of another: uniform pieces, contiguous on both sides, as few as possible."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmarket.errors import LayoutError
from kvmarket.layout.layout import Layout
from kvmarket.support.sets import distinct

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fragments:
    """The pieces of one slot, by ascending address in the source. Each array has one int64 per piece and is read-only.

    Piece ``f`` is the ``length`` bytes at ``source_offset[f] + slot * source_stride[f]`` of ``source_segment[f]``, and
    likewise of the destination. Together the pieces cover the slot, each byte once. ``align`` is the largest power
    of two up to 16 that divides all offsets, strides and the length (addresses of segments not counted).
    """

    length: int
    align: int
    source_segment: Ints
    source_offset: Ints
    source_stride: Ints
    destination_segment: Ints
    destination_offset: Ints
    destination_stride: Ints

    def __len__(self) -> int:
        return len(self.source_offset)


@functools.lru_cache(maxsize=256)
def fragments(source: Layout, destination: Layout) -> Fragments:
    """Plan the copy of one slot from ``source`` to ``destination``.

    The contiguous runs of both sides are cut at each other's ends and sorted by source address. Neighbours that touch
    on both sides are joined, so two caches of the same physical order copy whole pages even where the logical order is
    permuted. Then all pieces are cut to the greatest common divisor of their lengths. Takes milliseconds for thousands
    of runs; the result is cached per pair of layouts. Raises LayoutError when the geometries differ.
    """
    if source.geometry() != destination.geometry():
        raise LayoutError(
            f"blocks of ({source.geometry()}) do not fit slots of ({destination.geometry()}): "
            "give both engines the same model, dtype and block size, and pass views of the same logical shape"
        )
    first, second = _runs(source), _runs(destination)
    cuts = distinct(np.concatenate((_starts(first), _starts(second))))
    length = np.diff(cuts, append=source.slot_bytes)
    here, there = _at(first, cuts), _at(second, cuts)

    order = np.lexsort((here[:, _OFFSET], here[:, _SEGMENT]))
    length, here, there = length[order], here[order], there[order]
    touch = _touch(here, length) & _touch(there, length)
    heads = np.flatnonzero(np.concatenate([[True], ~touch]))
    length, here, there = np.add.reduceat(length, heads), here[heads], there[heads]

    common = int(np.gcd.reduce(length))
    count = length // common
    piece = np.repeat(np.arange(len(length)), count)
    within = (np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)) * common
    here, there = here[piece], there[piece]
    here[:, _OFFSET] += within
    there[:, _OFFSET] += within

    bits = 16 | common | int(np.bitwise_or.reduce(here[:, _OFFSET:] | there[:, _OFFSET:], axis=None))
    columns = [np.ascontiguousarray(side[:, column]) for side in (here, there) for column in range(3)]
    return Fragments(common, bits & -bits, *columns)


_SEGMENT, _OFFSET, _STRIDE, _LENGTH = range(4)  # columns of a table of runs, one run per row


def _runs(layout: Layout) -> Ints:
    """List the contiguous runs of slot 0 in canonical order: rows of (segment, offset, slot stride, length)."""
    tables = []
    for part in layout.parts:
        dims = list(zip(part.shape, part.strides, strict=True))
        length = layout.item_bytes
        while dims and dims[-1][1] == length:
            length *= dims.pop()[0]
        offset = np.array([part.offset], np.int64)
        for size, stride in dims:
            offset = (offset[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
        table = np.empty((len(offset), 4), np.int64)
        table[:] = (part.segment, 0, part.slot_stride, length)
        table[:, _OFFSET] = offset
        tables.append(table)
    return np.concatenate(tables)


def _starts(runs: Ints) -> Ints:
    """Return where each run starts in the canonical order, in bytes."""
    ends: Ints = np.cumsum(runs[:, _LENGTH])
    return ends - runs[:, _LENGTH]


def _at(runs: Ints, cuts: Ints) -> Ints:
    """Return rows of (segment, offset, slot stride) for the pieces that start at ``cuts`` in canonical order."""
    starts = _starts(runs)
    run = np.searchsorted(starts, cuts, side="right") - 1
    rows: Ints = runs[run, :_LENGTH]
    rows[:, _OFFSET] += cuts - starts[run]
    return rows


def _touch(rows: Ints, length: Ints) -> npt.NDArray[np.bool_]:
    """Say for each row but the first whether it starts where the row before it ends, in every slot."""
    same = (rows[1:, _SEGMENT] == rows[:-1, _SEGMENT]) & (rows[1:, _STRIDE] == rows[:-1, _STRIDE])
    result: npt.NDArray[np.bool_] = same & (rows[1:, _OFFSET] == rows[:-1, _OFFSET] + length[:-1])
    return result
