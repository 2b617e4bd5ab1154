"""What pack, scatter and pull share: the tile that one program moves per step, and the launch.

A tile is ROWS units of COLUMNS words; a unit is a chunk of a fragment of a slot. Small fragments fill the tile side by
side and large ones are cut into chunks, so both run at full width. Programs stride over the tiles, so their number is
the caller's choice: it bounds the SMs taken, not the bytes moved.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kvmarket.errors import MisuseError
from kvmarket.kernels.slots import check_slots
from kvmarket.kernels.tables import table_of
from kvmarket.layout import SlotArray

INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}  # a word of so many bytes
RUNTIME = ["fragments", "chunks", "words", "units"]  # arguments whose values must not make another kernel
SLOTS = ["source_slots", "destination_slots"]  # arguments whose alignment must not


@triton.jit  # type: ignore[untyped-decorator]
def move_tiles(
    table: tl.tensor,
    source_slots: tl.tensor,
    destination_slots: tl.tensor,
    fragments: int,
    chunks: int,
    words: int,
    units: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INTEGER: tl.constexpr,
    ALIGN: tl.constexpr,
    EXACT: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Move units ``0 .. units`` (slot-major, then fragment, then chunk), this program's share of them.

    table: (4, fragments) int64, see Table. slots: int64, one per block. words: INTEGERs per fragment; EXACT when
    COLUMNS divides them. ALIGN divides all addresses and the length. WIDE counts units in 64 bits.
    """
    WORD: tl.constexpr = INTEGER.primitive_bitwidth // 8
    pointer: tl.constexpr = tl.pointer_type(INTEGER)
    PAIR: tl.constexpr = ALIGN // WORD  # words per access: tells the compiler that a mask never splits one
    first = tl.program_id(0)
    step = tl.num_programs(0)
    if WIDE:
        first = first.to(tl.int64)
        step = step.to(tl.int64)
    column = tl.arange(0, COLUMNS)
    for start in tl.range(first * ROWS, units, step * ROWS, num_stages=1):
        unit = start + tl.arange(0, ROWS)
        live = unit < units
        chunk = unit % chunks
        piece = unit // chunks
        fragment = piece % fragments
        block = piece // fragments
        begin = chunk.to(tl.int64) * (COLUMNS * WORD)

        slot = tl.load(source_slots + block, mask=live, other=0)
        base = tl.load(table + fragment, mask=live, other=0)
        stride = tl.load(table + fragments + fragment, mask=live, other=0)
        source = tl.multiple_of((base + slot * stride + begin).to(pointer, bitcast=True), ALIGN)

        slot = tl.load(destination_slots + block, mask=live, other=0)
        base = tl.load(table + 2 * fragments + fragment, mask=live, other=0)
        stride = tl.load(table + 3 * fragments + fragment, mask=live, other=0)
        destination = tl.multiple_of((base + slot * stride + begin).to(pointer, bitcast=True), ALIGN)

        mask = live[:, None]
        if not EXACT:
            left = (words // PAIR) * PAIR - chunk * COLUMNS
            mask = mask & (column[None, :] < left[:, None])
        value = tl.load(source[:, None] + column[None, :], mask=mask)
        tl.store(destination[:, None] + column[None, :], value, mask=mask)


class Tile(NamedTuple):
    """The shape of a tile: constants of the compiled kernel."""

    rows: int
    columns: int
    word: int
    align: int
    exact: bool


@functools.lru_cache(maxsize=1024)
def tile_of(length: int, align: int, size: int) -> Tile:
    """Choose the tile of at most ``size`` bytes (a power of two) for fragments of ``length`` bytes.

    As wide as it can be without masking off more of the fragment's last chunk than a narrower tile would. The number of
    words is that of 8-byte words even where words are narrower, because each word takes a register.
    """
    word = min(align, 8)
    words, limit = length // word, size // 8
    widest = min(1 << (words - 1).bit_length(), limit)
    narrowest = min(widest, 32)
    choices = [1 << bit for bit in range(narrowest.bit_length() - 1, widest.bit_length())]
    columns = min(choices, key=lambda choice: (-(-words // choice) * choice, -choice))
    return Tile(limit // columns, columns, word, align, words % columns == 0)


def constants_of(tile: Tile, *, wide: bool) -> dict[str, Any]:
    """Name the constants with which a kernel is compiled for a tile."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "INTEGER": INTEGERS[tile.word],
        "ALIGN": tile.align,
        "EXACT": tile.exact,
        "WIDE": wide,
    }


def launch(
    kernel: Any,
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int,
    tile_bytes: int,
    warps: int,
) -> None:
    """Run ``kernel`` over all fragments of all given slots on the destination device's current stream.

    Returns at once. The arrays and slot tensors must live until the copy is done. Without any slots nothing moves, but
    the table is built and the kernel compiled. Raises SlotError and MisuseError before anything is launched.
    """
    check_slots(source, source_slots, destination, destination_slots)
    if interpreted() != (destination.device.type == "cpu"):
        raise MisuseError(
            f"a Triton kernel cannot run on {destination.device} like this: CUDA tensors need TRITON_INTERPRET unset, "
            "CPU tensors need TRITON_INTERPRET=1 before triton is imported (or the torch reference: use copy_blocks)"
        )
    table = table_of(source, destination)
    tile = tile_of(table.length, table.align, tile_bytes)
    words = table.length // tile.word
    chunks = -(-words // tile.columns)
    units = source_slots.numel() * table.count * chunks
    grid = (max(1, min(programs, -(-units // tile.rows))),)
    wide = units + grid[0] * tile.rows >= 2**31
    on_device = torch.cuda.device(destination.device) if destination.device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[grid](
            table.entries,
            source_slots,
            destination_slots,
            table.count,
            chunks,
            words,
            units,
            **constants_of(tile, wide=wide),
            num_warps=warps,
        )


def interpreted() -> bool:
    """Say whether this process' kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return not isinstance(move_tiles, triton.JITFunction)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the SMs of a GPU; 4 on a CPU, where the interpreter runs programs one after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
