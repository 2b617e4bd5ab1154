"""The kernel that packs: blocks from an engine's own slots into slots of the packed layout, on one device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvmarket.errors import LayoutError
from kvmarket.kernels.addresses.pairs import PairCache
from kvmarket.kernels.shape import LOCAL, SMALL_LOCAL
from kvmarket.kernels.tile import POINTERS, RUNTIME, Launcher, launch, move_tiles
from kvmarket.layout.paged import SlotArray


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=POINTERS)  # type: ignore[untyped-decorator]
def pack_kernel(
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
    """Gather: each program moves its tiles of fragments from paged slots to their places in packed ones."""
    move_tiles(
        table, source_slots, destination_slots, sums, fragments, chunks, words, units,
        ROWS, COLUMNS, PIECE, INTEGER, ALIGN, EXACT, WIDE, SUM,
    )  # fmt: skip


pack_launcher = PairCache(lambda source, destination: Launcher(pack_kernel, source, destination, LOCAL, SMALL_LOCAL))


def pack(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    """Copy blocks ``source_slots[i]`` to packed slots ``destination_slots[i]``.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    Runs on that device's current stream, on at most ``programs`` programs, and returns at once. The default is one
    program per tile, so that the pack ends soon: the engine's next step waits for it. ``sums``: zeroed int64, one per
    block, to which the block's checksum is added (see checksum.py). Raises LayoutError, SlotError or MisuseError before
    anything is launched.
    """
    if not destination.layout.packed:
        raise LayoutError("pack needs a packed destination: use pull between other layouts")
    launch(
        pack_launcher,
        source,
        source_slots,
        destination,
        destination_slots,
        programs=programs,
        sums=sums,
    )
