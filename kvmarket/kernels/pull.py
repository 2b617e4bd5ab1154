"""The kernel that pulls: blocks from a peer's slots, whatever their layout, into this engine's own slots."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvmarket.kernels.tile import RUNTIME, SLOTS, launch, move_tiles
from kvmarket.layout import SlotArray

PROGRAMS = 24  # enough for a peer link; more would take SMs from the co-running model and gain little
TILE_BYTES = 65536  # in flight per program and step: the link's latency is long
WARPS = 32


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=SLOTS)  # type: ignore[untyped-decorator]
def pull_kernel(
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
    """Read over the link, write at home: few programs, each with a large tile of fragments in flight."""
    move_tiles(
        table, source_slots, destination_slots, fragments, chunks, words, units,
        ROWS, COLUMNS, INTEGER, ALIGN, EXACT, WIDE,
    )  # fmt: skip


def pull(
    source: SlotArray,
    source_slots: torch.Tensor,
    destination: SlotArray,
    destination_slots: torch.Tensor,
    *,
    programs: int | None = None,
) -> None:
    """Copy blocks ``source_slots[i]`` of any array to ``destination_slots[i]`` of any other, or of the same.

    Slots: 1-D int64 on the destination's device, in range; destinations differ from each other and from all sources.
    The source may be a peer's memory, mapped on the destination's device. Runs on that device's current stream, on at
    most ``programs`` programs (24 unless given), and returns at once. The bytes count only after the owner's
    generations were checked again. Raises LayoutError, SlotError or MisuseError before anything is launched.
    """
    launch(
        pull_kernel,
        source,
        source_slots,
        destination,
        destination_slots,
        programs=programs or PROGRAMS,
        tile_bytes=TILE_BYTES,
        warps=WARPS,
    )
