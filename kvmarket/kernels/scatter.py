"""The kernel that scatters: blocks from slots of the packed layout into an engine's own slots, on one device."""

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
def scatter_kernel(
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
    """Scatter: each program moves its tiles of fragments from packed slots to their places in paged ones."""
    move_tiles(
        table, source_slots, destination_slots, sums, fragments, chunks, words, units,
        ROWS, COLUMNS, PIECE, INTEGER, ALIGN, EXACT, WIDE, SUM,
    )  # fmt: skip


scatter_launcher = PairCache(
    lambda source, destination: Launcher(scatter_kernel, source, destination, LOCAL, SMALL_LOCAL)
)


def scatter(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    """Copy packed blocks ``source_slots[i]`` to slots ``destination_slots[i]``.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    Runs on that device's current stream, on at most ``programs`` programs (by default one per tile), and returns at
    once. ``sums``: zeroed int64, one per block, to which the block's checksum is added (see checksum.py). Raises
    LayoutError, SlotError or MisuseError before anything is launched.
    """
    if not source.layout.packed:
        raise LayoutError("scatter needs a packed source: use pull between other layouts")
    launch(
        scatter_launcher,
        source,
        source_slots,
        destination,
        destination_slots,
        programs=programs,
        sums=sums,
    )
