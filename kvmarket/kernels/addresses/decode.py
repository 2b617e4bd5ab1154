"""The kernel code that decodes an address table: where the units of a tile lie. `move_tiles` in tile.py calls it."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def locate_tile(
    table: tl.tensor,
    source_slots: tl.tensor,
    destination_slots: tl.tensor,
    fragments: int,
    chunks: int,
    units: int,
    start: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD: tl.constexpr,
) -> Any:
    """Locate the tile that starts with unit ``start``.

    Returns per row (unit): source and destination address, whether the unit exists, its chunk, the offset of its first
    byte in a packed slot, its block.
    """
    unit = start + tl.arange(0, ROWS)
    live = unit < units
    chunk = unit % chunks
    piece = unit // chunks
    fragment = piece % fragments
    block = piece // fragments
    begin = chunk.to(tl.int64) * (COLUMNS * WORD)
    source = tl.load(table + fragment, mask=live, other=0) + begin
    source += tl.load(source_slots + block, mask=live, other=0) * tl.load(
        table + fragments + fragment, mask=live, other=0
    )
    destination = tl.load(table + 2 * fragments + fragment, mask=live, other=0) + begin
    destination += tl.load(destination_slots + block, mask=live, other=0) * tl.load(
        table + 3 * fragments + fragment, mask=live, other=0
    )
    place = tl.load(table + 4 * fragments + fragment, mask=live, other=0) + begin
    return source, destination, live, chunk, place, block
