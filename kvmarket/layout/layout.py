"""The layout of a pool: where the bytes of every slot lie, without addresses. It travels, so it is checked."""

from __future__ import annotations

import itertools
import math

import msgspec
import torch

from kvmarket.errors import LayoutError

ITEM_BYTES = (1, 2, 4, 8)  # of elements that move as integers


class Part(msgspec.Struct, frozen=True):
    """One strided range of every slot: a layer, or the K or the V of a layer.

    Element ``index`` of slot ``s`` starts at byte ``offset + s * slot_stride + sum(index * strides)`` of its segment.
    """

    segment: int
    offset: int
    slot_stride: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def items(self) -> int:
        """Elements of one slot."""
        return math.prod(self.shape)

    @property
    def last(self) -> int:
        """Bytes from a slot's first element to the start of its last one."""
        return sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


class Layout(msgspec.Struct, frozen=True):
    """How the slots of a pool lie in its segments. Travels between processes; checked whenever it is made or decoded.

    The canonical order of a slot's bytes is: parts in order, each in logical index order. A segment is one torch
    storage. ``packed``: the canonical order is the physical one, that is, a single part without gaps, slots one after
    another from ``parts[0].offset`` on. Raises LayoutError (ValidationError when decoded) if it is inconsistent.
    """

    slots: int
    block_size: int  # tokens per block
    dtype: str  # torch's name without "torch."
    item_bytes: int
    layers: tuple[tuple[int, ...], ...]  # logical shapes without dimensions of size 1; a K/V pair is a leading 2
    parts: tuple[Part, ...]
    segments: tuple[int, ...]  # bytes of each
    slot_bytes: int  # payload of one slot, without gaps
    packed: bool
    token_dims: tuple[int, ...] = ()  # per layer, which dimension counts tokens; empty if the shapes tell that

    def __post_init__(self) -> None:
        check_layout(self)

    def geometry(self) -> str:
        """Return a text that is equal for two layouts exactly when blocks may be copied between them.

        It names dtype, block size, layer shapes and token dimensions.
        """
        texts = [list(map(str, shape)) for shape in self.layers]
        for text, dim in zip(texts, self.token_dims, strict=False):  # there may be none
            text[dim] += " tokens"
        runs = ((text, len(list(run))) for text, run in itertools.groupby(map(",".join, texts)))
        layers = " + ".join(f"{count} x [{text}]" for text, count in runs)
        return f"{self.dtype}, {self.block_size} tokens, {layers}"

    def as_packed(self, slots: int) -> Layout:
        """Return the packed layout of the same geometry: one segment of ``slots * slot_bytes`` bytes, offset 0."""
        return Layout(
            slots=slots,
            block_size=self.block_size,
            dtype=self.dtype,
            item_bytes=self.item_bytes,
            layers=self.layers,
            parts=(Part(0, 0, self.slot_bytes, (self.slot_bytes // self.item_bytes,), (self.item_bytes,)),),
            segments=(slots * self.slot_bytes,),
            slot_bytes=self.slot_bytes,
            packed=True,
            token_dims=self.token_dims,
        )


def gapless(part: Part, item: int) -> bool:
    """Say whether one slot of the part is contiguous in logical order."""
    return part.strides == tuple(math.prod(part.shape[dim + 1 :]) * item for dim in range(len(part.shape)))


def check_layout(layout: Layout) -> None:
    """Raise LayoutError unless every byte of the layout lies inside its segments and its figures are consistent."""
    item, dtype = layout.item_bytes, getattr(torch, layout.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or dtype.itemsize != item or item not in ITEM_BYTES:
        raise LayoutError(f"no items of {item} bytes are called {layout.dtype!r}: pass a real torch dtype")
    if layout.slots < 1 or type(layout.block_size) is not int or layout.block_size < 1:
        raise LayoutError(f"{layout.slots} slots of {layout.block_size} tokens: both must be whole numbers from 1 on")
    if not layout.layers or any(size < 2 for shape in layout.layers for size in shape):
        raise LayoutError(f"layer shapes {layout.layers}: leave out dimensions of size 1, and none may be empty")
    payload = sum(math.prod(shape) for shape in layout.layers) * item
    if not payload == layout.slot_bytes == sum(part.items for part in layout.parts) * item:
        raise LayoutError(f"layers of {payload} bytes and parts of another size in slots of {layout.slot_bytes} bytes")
    for number, part in enumerate(layout.parts):
        steps = (part.slot_stride, *part.strides)
        if len(part.shape) != len(part.strides) or min(steps) < 1 or part.offset < 0 or min(part.shape, default=1) < 1:
            raise LayoutError(f"part {number} has shape {part.shape} and strides {steps}: strides must be positive")
        if any(figure % item for figure in (part.offset, *steps)):
            raise LayoutError(f"part {number} is not aligned to items of {item} bytes: use a view of the dtype itself")
        end = part.offset + (layout.slots - 1) * part.slot_stride + part.last + item
        if not 0 <= part.segment < len(layout.segments) or end > layout.segments[part.segment] or end >= 2**63:
            raise LayoutError(f"part {number} ends at byte {end} of segment {part.segment}, outside of it")
    if layout.packed:
        part = layout.parts[0]
        if len(layout.parts) != 1 or not gapless(part, item) or part.slot_stride != layout.slot_bytes:
            raise LayoutError("a packed layout is one part without gaps: use Layout.as_packed")
    elif not _parts_make_layers(layout):
        raise LayoutError("parts that are no layers: each layer is one part, or K and V")
    if layout.token_dims and (
        len(layout.token_dims) != len(layout.layers)
        or any(not 0 <= dim < len(shape) for dim, shape in zip(layout.token_dims, layout.layers, strict=True))
    ):
        raise LayoutError(f"layers {layout.layers} have no dimensions {layout.token_dims}: name one of each")


def _parts_make_layers(layout: Layout) -> bool:
    """Say whether the parts are, in order, one per layer, or K and V of a layer whose shape starts with a 2."""
    rest = iter(part.shape for part in layout.parts)
    for shape in layout.layers:
        found = next(rest, None)
        if found != shape and (shape[:1] != (2,) or found != shape[1:] or next(rest, None) != found):
            return False
    return next(rest, None) is None
