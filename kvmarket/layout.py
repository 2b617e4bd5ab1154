"""How the bytes of a block lie in memory: a paged cache, its layout, and the packed layout.

::

    PagedCache   owns nothing new: looks at an engine's tensors and describes them
    Layout       travels: the description, without addresses
    SlotArray    a layout at addresses of this process: what the kernels copy from and to

All offsets and strides are bytes in 64 bits; caches may be far larger than 4 GiB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import torch

from kvmarket.errors import LayoutError
from kvmarket.layer_tensors import LayerTensors, check_tensors, layer_groups
from kvmarket.overlap import overlapping_parts

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what items of so many bytes move as


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
    """How the slots of a pool lie in its segments. Travels between processes, and is checked wherever it arrives.

    The canonical order of a slot's bytes is: parts in order, each in logical index order. A segment is one torch
    storage. ``packed`` says that the canonical order is the physical one: a single part without gaps, slots one after
    another from ``parts[0].offset`` on. Raises LayoutError (ValidationError when decoded) if it contradicts itself.
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

    def __post_init__(self) -> None:
        _check(self)

    def geometry(self) -> str:
        """Return a text that is equal exactly when bytes may move: dtype, block size, layer shapes."""
        runs = ((shape, len(list(run))) for shape, run in itertools.groupby(self.layers))
        layers = " + ".join(f"{count} x [{','.join(map(str, shape))}]" for shape, count in runs)
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
        )


class SlotArray:
    """A layout at addresses of this process: one pool's memory as it is seen from here.

    ``segments`` are 1-D contiguous uint8 tensors, all on one device, at least as long as the layout says; they are kept
    alive, not copied, and must stay where they are. Compared and hashed by identity: kernels cache their tables per
    pair of arrays, so keep one array per pool instead of making one per copy.
    """

    def __init__(self, layout: Layout, segments: Sequence[torch.Tensor]) -> None:
        if len(segments) != len(layout.segments):
            raise LayoutError(f"{len(segments)} segments for a layout of {len(layout.segments)}: pass one per storage")
        for index, (segment, size) in enumerate(zip(segments, layout.segments, strict=True)):
            if segment.dtype != torch.uint8 or segment.ndim != 1 or not segment.is_contiguous():
                raise LayoutError(f"segment {index} is {segment.dtype} {tuple(segment.shape)}: pass 1-D uint8 tensors")
            if segment.numel() < size:
                raise LayoutError(f"segment {index} has {segment.numel()} bytes, its layout {size}: map all of it")
        if len({segment.device for segment in segments}) != 1:
            raise LayoutError("segments on several devices: open all of them on the device that copies")
        self.layout = layout
        self.segments = tuple(segments)
        self.device = segments[0].device
        self._views: list[torch.Tensor] | None = None

    def addresses(self) -> tuple[int, ...]:
        """Return the address of each segment's first byte, now."""
        return tuple(segment.data_ptr() for segment in self.segments)

    def part_views(self) -> list[torch.Tensor]:
        """Return an integer tensor (slots, then the part's shape) per part, strided, over the very memory."""
        if self._views is None:
            self._views = [self._view(part) for part in self.layout.parts]
        return self._views

    def _view(self, part: Part) -> torch.Tensor:
        item = self.layout.item_bytes
        segment = self.segments[part.segment]
        words = segment[: segment.numel() // item * item].view(WORDS[item])
        strides = [stride // item for stride in (part.slot_stride, *part.strides)]
        return words.as_strided((self.layout.slots, *part.shape), strides, words.storage_offset() + part.offset // item)


class PagedCache:
    """The paged KV cache of an engine: a tensor, or a (K, V), per layer, in a sequence or as a mapping's values.

    ``slot_dim`` is the dimension of every tensor that counts blocks; ``block_size`` is in tokens. Strides are honoured:
    any views will do as long as no two elements share memory. The tensors stay the caller's; they are kept alive.
    Raises LayoutError for tensors that form no cache.
    """

    def __init__(
        self,
        layer_tensors: Mapping[str, LayerTensors] | Sequence[LayerTensors],
        block_size: int = 16,
        slot_dim: int = 0,
    ) -> None:
        groups = layer_groups(layer_tensors)
        self._tensors = [tensor for group in groups for tensor in group]
        check_tensors(self._tensors, slot_dim)
        first = self._tensors[0]
        self.dtype = first.dtype
        self.device = first.device
        item = first.element_size()
        bases = {tensor.untyped_storage().data_ptr(): tensor for tensor in self._tensors}  # in order of appearance
        self._anchors = list(bases.values())
        index = {base: position for position, base in enumerate(bases)}
        parts = tuple(_part(tensor, slot_dim, index[tensor.untyped_storage().data_ptr()]) for tensor in self._tensors)
        slot_bytes = sum(part.items for part in parts) * item
        self.layout = Layout(
            slots=first.shape[slot_dim],
            block_size=block_size,
            dtype=str(first.dtype).removeprefix("torch."),
            item_bytes=item,
            layers=_layers(groups, parts),
            parts=parts,
            segments=tuple(tensor.untyped_storage().nbytes() for tensor in self._anchors),
            slot_bytes=slot_bytes,
            packed=len(parts) == 1 and _gapless(parts[0], item) and parts[0].slot_stride == slot_bytes,
        )
        clash = overlapping_parts(self.layout, tuple(bases))
        if clash is not None:
            raise LayoutError(
                f"parts {clash[0]} and {clash[1]} share memory: pass each layer's tensor once, without expanded or "
                "overlapping views (layers that alias one buffer belong to separate caches)"
            )
        self._array: tuple[tuple[int, ...], SlotArray] | None = None

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self.layout.block_size

    @property
    def slots(self) -> int:
        """Blocks that fit."""
        return self.layout.slots

    @property
    def slot_bytes(self) -> int:
        """Payload of one block, all layers."""
        return self.layout.slot_bytes

    def storages(self) -> list[torch.UntypedStorage]:
        """Return the storages behind the tensors, one per segment, in order: what a transport exports."""
        return [tensor.untyped_storage() for tensor in self._anchors]

    def slot_array(self) -> SlotArray:
        """Return this process' own view; the same object until the storages are moved (into shared memory, say)."""
        storages = self.storages()
        addresses = tuple(storage.data_ptr() for storage in storages)
        if self._array is None or self._array[0] != addresses:
            empty = [torch.empty(0, dtype=torch.uint8, device=self.device) for _ in storages]
            segments = [tensor.set_(storage) for tensor, storage in zip(empty, storages, strict=True)]
            self._array = (addresses, SlotArray(self.layout, segments))
        return self._array[1]


def _part(tensor: torch.Tensor, slot_dim: int, segment: int) -> Part:
    """Return the part that a tensor is, without its slot dimension and without dimensions of size 1."""
    item = tensor.element_size()
    slot_dim %= tensor.ndim
    dims = [
        (int(size), int(stride) * item)
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if dim != slot_dim and size > 1
    ]
    slot_stride = int(tensor.stride(slot_dim)) * item
    if tensor.shape[slot_dim] == 1:  # torch leaves this stride to chance
        slot_stride = sum((size - 1) * stride for size, stride in dims) + item
    shape, strides = tuple(size for size, _ in dims), tuple(stride for _, stride in dims)
    return Part(segment, int(tensor.storage_offset()) * item, slot_stride, shape, strides)


def _layers(groups: list[list[torch.Tensor]], parts: tuple[Part, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the canonical shape per layer: K and V of one shape are a leading 2, of two shapes two layers."""
    layers: list[tuple[int, ...]] = []
    rest = iter(parts)
    for group in groups:
        shapes = [next(rest).shape for _ in group]
        layers += [(2, *shapes[0])] if len(shapes) == 2 and shapes[0] == shapes[1] else shapes
    return tuple(layers)


def _gapless(part: Part, item: int) -> bool:
    """Say whether one slot of the part is contiguous in logical order."""
    return part.strides == tuple(math.prod(part.shape[dim + 1 :]) * item for dim in range(len(part.shape)))


def _check(layout: Layout) -> None:
    """Raise LayoutError unless every byte a layout names lies inside its segments and its figures agree."""
    item, dtype = layout.item_bytes, getattr(torch, layout.dtype, None)
    if not isinstance(dtype, torch.dtype) or dtype.is_complex or dtype.itemsize != item or item not in WORDS:
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
        if len(layout.parts) != 1 or not _gapless(part, item) or part.slot_stride != layout.slot_bytes:
            raise LayoutError("a packed layout is one part without gaps: use Layout.as_packed")
    elif not _parts_make_layers(layout):
        raise LayoutError("parts that are no layers: each layer is one part, or K and V")


def _parts_make_layers(layout: Layout) -> bool:
    """Say whether the parts are, in order, each layer's tensor or its K and its V."""
    rest = iter(part.shape for part in layout.parts)
    for shape in layout.layers:
        found = next(rest, None)
        if found != shape and (shape[:1] != (2,) or found != shape[1:] or next(rest, None) != found):
            return False
    return next(rest, None) is None
