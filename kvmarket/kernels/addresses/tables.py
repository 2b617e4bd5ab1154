"""The table of a pair of arrays: addresses, strides and packed places of all fragments, on the device that copies.

`locate_tile` in decode.py reads it on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvmarket.errors import LayoutError
from kvmarket.kernels.addresses.fragments import Fragments, Ints, fragments
from kvmarket.kernels.addresses.pairs import PairCache
from kvmarket.layout.paged import SlotArray


@dataclass(frozen=True, eq=False)
class Table:
    """Fragments of one pair of arrays.

    ``entries`` is (5, count) int64 on the destination's device: source address in slot 0, source stride, destination
    address in slot 0, destination stride, place within a packed slot (0 where neither side is packed), in bytes.
    ``first``: the first column, used where a slot is one fragment. ``count``: fragments of a slot. ``length``: bytes of
    every fragment. ``align`` (1 to 16) divides every address and ``length``.
    """

    entries: torch.Tensor
    first: tuple[int, ...]  # the first column of entries, on the host
    count: int
    length: int
    align: int


def _build(source: SlotArray, destination: SlotArray) -> Table:
    if source.device.type != destination.device.type:
        raise LayoutError(
            f"a source on {source.device} and a destination on {destination.device}: map both where the copy runs"
        )
    pieces = fragments(source.layout, destination.layout)
    entries = np.stack(
        [
            pieces.source_offset + np.array(source.addresses(), np.int64)[pieces.source_segment],
            pieces.source_stride,
            pieces.destination_offset + np.array(destination.addresses(), np.int64)[pieces.destination_segment],
            pieces.destination_stride,
            _places(source, destination, pieces),
        ]
    )
    bits = 16 | pieces.length | int(np.bitwise_or.reduce(entries[:4], axis=None))
    first = tuple(entries[:, 0].tolist())
    return Table(torch.from_numpy(entries).to(destination.device), first, len(pieces), pieces.length, bits & -bits)


def _places(source: SlotArray, destination: SlotArray, pieces: Fragments) -> Ints:
    """Return where each fragment starts within a packed slot, in bytes; zeros where neither side is packed."""
    if source.layout.packed:
        return pieces.source_offset - source.layout.parts[0].offset
    if destination.layout.packed:
        return pieces.destination_offset - destination.layout.parts[0].offset
    return np.zeros(len(pieces), np.int64)


table_of = PairCache(_build)
"""The table for (source, destination). The first call builds it and waits for its upload; cached while both live.

Raises LayoutError if their geometries or their types of device differ.
"""
