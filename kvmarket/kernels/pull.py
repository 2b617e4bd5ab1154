"""The kernel that pulls: blocks from a peer's slots, whatever their layout, into this engine's own slots."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvmarket.kernels.addresses.pairs import PairCache
from kvmarket.kernels.shape import LINK, SMALL_LINK, SUMMING_LINK
from kvmarket.kernels.tile import POINTERS, RUNTIME, Launcher, launch, move_tiles
from kvmarket.layout.paged import SlotArray


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=POINTERS)  # type: ignore[untyped-decorator]
def pull_kernel(
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
    """Read over the link, write to local memory: few programs, each with a large tile of fragments in flight."""
    move_tiles(
        table, source_slots, destination_slots, sums, fragments, chunks, words, units,
        ROWS, COLUMNS, PIECE, INTEGER, ALIGN, EXACT, WIDE, SUM,
    )  # fmt: skip


pull_launcher = PairCache(
    lambda source, destination: Launcher(pull_kernel, source, destination, LINK, SMALL_LINK, SUMMING_LINK)
)


def pull(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    """Copy blocks ``source_slots[i]`` of any array to ``destination_slots[i]`` of any other, or of the same.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    The source may be a peer's memory, mapped on the destination's device. Runs on that device's current stream, on at
    most ``programs`` programs (by default as many as fill NVLink, see shape.py), and returns at once. The caller must
    not use the bytes before it has checked the owner's generations again. ``sums``, allowed where one side is packed:
    zeroed int64, one per block, to which the block's checksum is added (see checksum.py). Raises LayoutError, SlotError
    or MisuseError before anything is launched.
    """
    launch(
        pull_launcher,
        source,
        source_slots,
        destination,
        destination_slots,
        programs=programs,
        sums=sums,
    )
