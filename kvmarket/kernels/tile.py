"""The code that pack, scatter and pull share: move the tiles of a program, and launch.

A tile is ROWS units of COLUMNS words; a unit is a chunk of a fragment of a slot. A tile holds several small fragments
side by side, and large fragments are cut into chunks, so both use the full width. Each program moves every n-th tile,
so the caller may choose the number n of programs: it bounds the SMs in use, not the bytes moved. shape.py says how
large tiles are.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl

from kvmarket.errors import MisuseError
from kvmarket.kernels import checksum
from kvmarket.kernels.addresses.decode import locate_tile
from kvmarket.kernels.addresses.pairs import PairCache
from kvmarket.kernels.addresses.slots import check_slots, check_sums
from kvmarket.kernels.addresses.tables import Table, table_of
from kvmarket.kernels.shape import Program, Tile, constants_of, program_of, tile_of
from kvmarket.layout.paged import SlotArray

Int64s: TypeAlias = torch.Tensor | int  # an int64 tensor, or its address
RUNTIME = ["fragments", "chunks", "words", "units"]  # Triton must not compile another kernel for their values
POINTERS = ["source_slots", "destination_slots", "sums"]  # nor for the alignment of these
KEY_STEP, FIRST_KEY = tl.constexpr(checksum.KEY_STEP), tl.constexpr(checksum.FIRST_KEY)
NO_SUMS, PER_BLOCK, PER_UNIT = 0, 1, 2  # the values of SUM
_PER_UNIT = tl.constexpr(PER_UNIT)
INTERPRETER = threading.Lock()  # while it runs a kernel, it changes triton.language for all threads


@triton.jit  # type: ignore[untyped-decorator]
def move_tiles(
    table: tl.tensor,
    source_slots: tl.tensor,
    destination_slots: tl.tensor,
    sums: tl.tensor,
    fragments: int,
    chunks: int,
    words: int,
    units: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
    INTEGER: tl.constexpr,
    ALIGN: tl.constexpr,
    EXACT: tl.constexpr,
    WIDE: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Move this program's share of the units ``0 .. units`` (numbered by block, then fragment, then chunk).

    table: (5, fragments) int64, see Table. slots: int64, one per block. words: INTEGERs per fragment; EXACT when
    COLUMNS divides them. PIECE divides COLUMNS: each access of the program is PIECE words of every row, and all reads
    of a tile are issued before its first write. ALIGN divides all addresses and the length. WIDE counts units in
    64 bits. SUM sums the weighted words, see checksum.py: PER_BLOCK adds the sum of each block to its int64 in
    ``sums``. PER_UNIT stores the sum of each unit in an int64 of its own, which may lie in host memory and need not be
    zeroed. With SUM, INTEGER is 4 bytes.

    The addresses of the next tile are loaded while the bytes of this tile are in flight.
    """
    WORD: tl.constexpr = INTEGER.primitive_bitwidth // 8
    pointer: tl.constexpr = tl.pointer_type(INTEGER)
    PAIR: tl.constexpr = ALIGN // WORD  # words per access: tells the compiler that a mask never splits one
    first = tl.program_id(0) * ROWS
    step = tl.num_programs(0) * ROWS
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * ROWS
        step = tl.num_programs(0).to(tl.int64) * ROWS
    column = tl.arange(0, PIECE)
    source, destination, live, chunk, place, block = locate_tile(
        table, source_slots, destination_slots, fragments, chunks, units, first, ROWS, COLUMNS, WORD
    )
    for start in tl.range(first, units, step, num_stages=1):
        readable = tl.multiple_of(source.to(pointer, bitcast=True), ALIGN)
        writable = tl.multiple_of(destination.to(pointer, bitcast=True), ALIGN)
        left = (words // PAIR) * PAIR - chunk * COLUMNS
        mask = None  # none needed where each row of a tile is a whole chunk of a unit that exists
        if ROWS > 1:
            mask = live[:, None]
        values = ()
        for at in tl.static_range(0, COLUMNS, PIECE):
            if not EXACT:
                mask = live[:, None] & ((column + at)[None, :] < left[:, None])
            value = tl.load(readable[:, None] + (column + at)[None, :], mask=mask)
            values = values + (value,)  # type: ignore[assignment]  # noqa: RUF005 - Triton knows no *
        source, destination, next_live, chunk, next_place, next_block = locate_tile(
            table, source_slots, destination_slots, fragments, chunks, units, start + step, ROWS, COLUMNS, WORD
        )
        for at in tl.static_range(0, COLUMNS, PIECE):
            if not EXACT:
                mask = live[:, None] & ((column + at)[None, :] < left[:, None])
            tl.store(writable[:, None] + (column + at)[None, :], values[at // PIECE], mask=mask)
        if SUM:
            weighted = tl.zeros((ROWS, PIECE), tl.uint64)
            for at in tl.static_range(0, COLUMNS, PIECE):
                word = (place // WORD).to(tl.uint32)[:, None] + (column + at)[None, :].to(tl.uint32)
                key = word * KEY_STEP + FIRST_KEY
                part = values[at // PIECE].to(tl.uint32, bitcast=True).to(tl.uint64) * key.to(tl.uint64)
                if not EXACT:
                    part = tl.where((column + at)[None, :] < left[:, None], part, 0)
                weighted += part
            total = tl.sum(weighted, 1).to(tl.int64, bitcast=True)
            if SUM == _PER_UNIT:
                tl.store(sums + start + tl.arange(0, ROWS), total, mask=live)
            else:
                tl.atomic_add(sums + block, total, mask=live, sem="relaxed")
        live, place, block = next_live, next_place, next_block


class Plan(NamedTuple):
    """What all launches of one kind share; ``sizes``: fragments of a slot, chunks and words of a fragment."""

    program: Program
    tile: Tile
    sizes: tuple[int, int, int]
    units: int  # of a block


class Launcher:
    """Launches one kernel for one pair of arrays; prepares once what all launches share.

    Does not keep the arrays alive. Raises MisuseError where a Triton kernel cannot run on the destination's device.
    """

    def __init__(
        self,
        kernel: Any,
        source: SlotArray,
        destination: SlotArray,
        large: Program,
        small: Program,
        summing: Program | None = None,
    ) -> None:
        """Use ``large``, or ``small`` for small fragments; ``summing`` replaces ``large`` in launches with sums."""
        if interpreted() != (destination.device.type == "cpu"):
            raise MisuseError(
                f"a Triton kernel cannot run on {destination.device} like this: CUDA tensors need TRITON_INTERPRET "
                "unset, CPU tensors need TRITON_INTERPRET=1 before triton is imported (or the torch reference: use "
                "copy_blocks)"
            )
        table = table_of(source, destination)
        self._kernel = kernel
        self._plain = _plan(table, large, small)
        self._summing = _plan(table, summing or large, small)
        self._entries, self._address = table.entries, table.entries.data_ptr()
        self._compiled: dict[tuple[bool, bool, int], tuple[Any, tuple[Any, ...]]] = {}

    @property
    def units(self) -> int:
        """Units per block in launches with sums: as many int64 as PER_UNIT stores for a block."""
        return self._summing.units

    def enough(self, *, summed: bool) -> int | None:
        """Number of programs that fill the link; None where the default is one program per tile."""
        return (self._summing if summed else self._plain).program.enough

    def __call__(
        self,
        source_slots: Int64s,
        destination_slots: Int64s,
        blocks: int,
        programs: int | None,
        sums: Int64s | None,
        stream: int,
        summed: int = PER_BLOCK,
    ) -> None:
        """Launch on the raw ``stream`` of the current device, on at most ``programs`` programs (None: one per tile).

        On a GPU each tensor may be given by its address, which saves a call of the driver. ``sums``, if given: one
        zeroed int64 per block; or, if ``summed`` is PER_UNIT, ``units`` int64 per block, which the caller adds up to
        get the block's sum. Nothing is checked. Costs about 8 us; the first call of each kind takes a second.
        """
        plan, kind = (self._plain, NO_SUMS) if sums is None else (self._summing, summed)
        units, rows = blocks * plan.units, plan.tile.rows
        tiles = -(-units // rows)
        grid = (max(1, tiles if programs is None else min(programs, tiles)), 1, 1)
        wide = units + grid[0] * rows >= 2**31
        slots = (source_slots, destination_slots, source_slots if sums is None else sums)
        sizes = (*plan.sizes, units)
        key = (wide, units >= 2**31, kind)
        known = self._compiled.get(key)  # Triton's own lookup takes three times as long
        if known is None:
            constants = constants_of(plan.tile, wide=wide, summed=kind)
            if interpreted():
                with INTERPRETER:
                    self._kernel[grid](self._entries, *slots, *sizes, **constants)
                return
            pointers = [self._entries] * 4  # warmup looks only at their type, which is the same for all four
            options = {"num_warps": plan.program.warps, "maxnreg": plan.program.registers}
            made = self._kernel.warmup(*pointers, *sizes, grid=grid, **constants, **options)
            known = self._compiled[key] = made, tuple(constants.values())
        made, values = known
        made[grid](self._address, *slots, *sizes, *values, stream=stream)


def _plan(table: Table, large: Program, small: Program) -> Plan:
    program = program_of(table.length, table.align, large, small)
    tile = tile_of(table.length, table.align, program)
    words = table.length // tile.word
    chunks = -(-words // tile.columns)
    return Plan(program, tile, (table.count, chunks, words), table.count * chunks)


def launch(
    launcher: PairCache[Launcher],
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None,
    sums: torch.Tensor | None = None,
) -> None:
    """Run a kernel over all fragments of all given slots, on at most ``programs`` programs (None: `Launcher.enough`).

    Launches on the destination device's current stream and returns at once. The arrays and all tensors must live until
    the copy is done. ``sums``: see `check_sums`. Without slots nothing moves, but the table is built and the kernel
    compiled. Raises SlotError, LayoutError or MisuseError before anything is launched.
    """
    check_slots(source, source_slots, destination, destination_slots)
    run = launcher(source, destination)
    if sums is not None:
        check_sums(sums, source, destination, source_slots, table_of(source, destination).align)
    programs = programs or run.enough(summed=sums is not None)
    if interpreted():
        run(source_slots, destination_slots, len(source_slots), programs, sums, 0)
        return
    with torch.cuda.device(destination.device):
        stream = torch.cuda.current_stream().cuda_stream
        run(source_slots, destination_slots, len(source_slots), programs, sums, stream)


def interpreted() -> bool:
    """Say whether this process' kernels run in Triton's interpreter (TRITON_INTERPRET=1 when triton was imported)."""
    return not isinstance(move_tiles, triton.JITFunction)
