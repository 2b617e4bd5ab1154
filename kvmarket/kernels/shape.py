"""Tile shapes: how many bytes one program of a kernel moves at a time. A kernel is compiled for these constants."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton.language as tl

INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32}  # bytes of a word -> Triton's type of it
ACCESS_WORDS = 128  # 4-byte words that a warp reads at a time, 16 bytes a thread


class Program(NamedTuple):
    """The resources of one program: bytes in flight at a time (its tile), warps, registers per thread.

    An SM has 65,536 registers; a program that takes them all has the SM to itself. ``enough`` programs fill NVLink
    between two H100 or H200; None for kernels that use no link, which run one program per tile.
    """

    tile_bytes: int
    warps: int
    registers: int
    enough: int | None


LINK = Program(131072, 16, 128, 12)  # an SM reads 49 GB/s from a peer with this tile, 45 GB/s with half of it
SUMMING_LINK = Program(65536, 16, 128, 20)  # summing takes registers, and time between reads: hence more programs
SMALL_LINK = Program(65536, 32, 64, 16)
LOCAL = Program(32768, 16, 64, None)
SMALL_LOCAL = Program(65536, 32, 64, None)


class Tile(NamedTuple):
    """The shape of a tile: ``rows`` units of ``columns`` words of ``word`` bytes.

    All warps together read ``piece`` columns of every row at a time. ``align`` divides all addresses and lengths.
    ``exact``: ``columns`` divides the words of a fragment, so no column needs a mask.
    """

    rows: int
    columns: int
    piece: int
    word: int
    align: int
    exact: bool


@functools.lru_cache(maxsize=1024)
def tile_of(length: int, align: int, program: Program) -> Tile:
    """Choose the tile of at most ``program.tile_bytes`` (a power of two) for fragments of ``length`` bytes.

    The tile is the widest of those that waste the fewest words in the fragment's last chunk. It has ``tile_bytes / 4``
    words even where words are narrower than 4 bytes, because each word takes a register. The piece is chosen so that
    every warp reads one row or a share of one: a thread then keeps the addresses of few rows.
    """
    word = min(align, 4)
    words, limit = length // word, program.tile_bytes // 4
    widest = min(1 << (words - 1).bit_length(), limit)
    narrowest = min(widest, 32)
    choices = [1 << bit for bit in range(narrowest.bit_length() - 1, widest.bit_length())]
    columns = min(choices, key=lambda choice: (-(-words // choice) * choice, -choice))
    rows = limit // columns
    piece = min(columns, ACCESS_WORDS * max(1, program.warps // rows))
    return Tile(rows, columns, piece, word, align, words % columns == 0)


def program_of(length: int, align: int, large: Program, small: Program) -> Program:
    """Choose between two programs for fragments of ``length`` bytes.

    Returns ``large``, unless its threads would need more registers for addresses and masks than they have.
    """
    tile = tile_of(length, align, large)
    return large if tile.exact and tile.rows <= 2 * large.warps else small


def constants_of(tile: Tile, *, wide: bool, summed: int) -> dict[str, Any]:
    """Return the constants, by name, with which a kernel is compiled for a tile; ``summed``: the value of SUM."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "PIECE": tile.piece,
        "INTEGER": INTEGERS[tile.word],
        "ALIGN": tile.align,
        "EXACT": tile.exact,
        "WIDE": wide,
        "SUM": summed,
    }
