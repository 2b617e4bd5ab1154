"""How much one program of a kernel moves at a time, and in which pieces: constants that a kernel is compiled for."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton.language as tl

INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32}  # a word of so many bytes
ACCESS_WORDS = 128  # what a warp reads at a time, 16 bytes a thread


class Program(NamedTuple):
    """What one program takes: bytes on their way at a time, warps, registers a thread.

    An SM has 65,536 registers; where a program takes them all, it is alone there. ``enough`` programs fill NVLink
    between two H100 or H200; None where there is nothing to fill, and as many run as there are tiles.
    """

    tile_bytes: int
    warps: int
    registers: int
    enough: int | None


LINK = Program(131072, 16, 128, 12)  # with half as much on its way an SM reads 45 GB/s from a peer, with this 49
SUMMING_LINK = Program(65536, 16, 128, 20)  # summing takes time between reads, and registers
SMALL_LINK = Program(65536, 32, 64, 16)
LOCAL = Program(32768, 16, 64, None)
SMALL_LOCAL = Program(65536, 32, 64, None)


class Tile(NamedTuple):
    """The shape of a tile: ``rows`` units of ``columns`` words, of which all warps read ``piece`` columns at a time."""

    rows: int
    columns: int
    piece: int
    word: int
    align: int
    exact: bool


@functools.lru_cache(maxsize=1024)
def tile_of(length: int, align: int, program: Program) -> Tile:
    """Choose the tile of at most ``program.tile_bytes`` (a power of two) for fragments of ``length`` bytes.

    As wide as it can be without masking off more of the fragment's last chunk than a narrower tile would. The number of
    words is that of 4-byte words even where words are narrower, because each word takes a register. A piece is as wide
    as gives every warp a row, or its share of one: then a thread has the addresses of few rows to keep.
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
    """The one of two programs that suits fragments of ``length`` bytes.

    The large one, unless each of its threads would have to keep more addresses and masks than it has registers for.
    """
    tile = tile_of(length, align, large)
    return large if tile.exact and tile.rows <= 2 * large.warps else small


def constants_of(tile: Tile, *, wide: bool, summed: int) -> dict[str, Any]:
    """Name the constants with which a kernel is compiled for a tile; ``summed``: what SUM is."""
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
