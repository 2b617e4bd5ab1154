"""How the bytes of a block lie in memory: a paged cache, its layout, and the packed layout.

::

    PagedCache   describes an engine's tensors; allocates nothing
    Layout       the description without addresses; travels
    SlotArray    a layout at addresses of this process; the kernels copy from one to another

All offsets and strides are bytes in 64 bits; caches may be far larger than 4 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kvmarket.errors import LayoutError
from kvmarket.layout.layer_tensors import LayerTensors, check_tensors, layer_groups
from kvmarket.layout.layout import Layout, Part, gapless
from kvmarket.layout.overlap import overlapping_parts
from kvmarket.layout.token_dims import check_shape, check_token_dim, named_dims

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of an item -> dtype it is copied as


class SlotArray:
    """A layout at addresses of this process: the memory of one pool, own or mapped.

    ``segments`` are 1-D contiguous uint8 tensors, all on one device, at least as long as the layout says; they are kept
    alive, not copied, and must not move. Compared and hashed by identity: kernels cache their tables per pair of
    arrays, so keep one array per pool instead of making one per copy. Raises LayoutError for segments that do not fit.
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
        """Return the current address of each segment's first byte."""
        return tuple(segment.data_ptr() for segment in self.segments)

    def part_views(self) -> list[torch.Tensor]:
        """Return one strided integer tensor per part, of shape (slots, *part.shape): views of the memory, no copies."""
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
    """The paged KV cache of an engine: one tensor, or a pair (K, V), per layer, in a sequence or as a mapping's values.

    ``slot_dim`` is the dimension of every tensor that counts blocks; ``block_size`` is in tokens. ``token_dim`` is the
    dimension that counts the tokens of a block, needed where the shapes do not tell it. Strides are honoured: any views
    are accepted as long as no two elements share memory. The tensors stay the caller's; they are kept alive. Raises
    LayoutError for tensors that do not form a cache.
    """

    def __init__(
        self,
        layer_tensors: Mapping[str, LayerTensors] | Sequence[LayerTensors],
        block_size: int = 16,
        slot_dim: int = 0,
        token_dim: int | None = None,
    ) -> None:
        groups = layer_groups(layer_tensors)
        self._tensors = [tensor for group in groups for tensor in group]
        check_tensors(self._tensors, slot_dim)
        if token_dim is not None:
            check_token_dim(self._tensors, block_size, slot_dim, token_dim)
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
            packed=len(parts) == 1 and gapless(parts[0], item) and parts[0].slot_stride == slot_bytes,
            token_dims=() if token_dim is None else named_dims(groups, block_size, slot_dim, token_dim),
        )
        self._pairs = tuple(len(group) == 2 for group in groups for _ in group)
        self._named = token_dim is not None
        self._described = self._shapes()
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
        """Number of slots, each of which holds one block."""
        return self.layout.slots

    @property
    def slot_bytes(self) -> int:
        """Bytes of one block: all layers, without gaps."""
        return self.layout.slot_bytes

    def check_meaning(self) -> None:
        """Raise LayoutError if the shapes do not tell which dimension counts tokens, or a block cannot hold its tokens.

        A cache that was made with ``token_dim`` passes. `connect` calls this before it shares a cache.
        """
        for part, pair in zip(self.layout.parts, self._pairs, strict=True):
            if not self._named:
                check_shape(part.shape, self.block_size, pair)

    def addresses(self) -> list[int]:
        """Return the current address of each tensor's first element. Costs about 50 ns each."""
        return [tensor.data_ptr() for tensor in self._tensors]

    def check_described(self) -> None:
        """Raise LayoutError if a tensor's shape, strides, offset or storage size changed since the cache was made."""
        for number, (was, now) in enumerate(zip(self._described, self._shapes(), strict=True)):
            if was != now:
                raise LayoutError(f"tensor {number} was changed since: make a PagedCache of the tensors as they are")

    def writes(self) -> int | None:
        """Return torch's version counter of the first tensor, which grows with each write by torch.

        None for an inference tensor, which has no such counter.
        """
        first = self._tensors[0]
        return None if first.is_inference() else int(first._version)

    def _shapes(self) -> list[tuple[object, ...]]:
        return [(t.shape, t.stride(), t.storage_offset(), t.untyped_storage().nbytes()) for t in self._tensors]

    def storages(self) -> list[torch.UntypedStorage]:
        """Return the storages behind the tensors, one per segment, in order: what a transport exports."""
        return [tensor.untyped_storage() for tensor in self._anchors]

    def slot_array(self) -> SlotArray:
        """Return the cache as a SlotArray: the same object until the storages move (into shared memory, say)."""
        storages = self.storages()
        addresses = tuple(storage.data_ptr() for storage in storages)
        if self._array is None or self._array[0] != addresses:
            empty = [torch.empty(0, dtype=torch.uint8, device=self.device) for _ in storages]
            segments = [tensor.set_(storage) for tensor, storage in zip(empty, storages, strict=True)]
            self._array = (addresses, SlotArray(self.layout, segments))
        return self._array[1]


def _part(tensor: torch.Tensor, slot_dim: int, segment: int) -> Part:
    """Describe a tensor as a Part, without its slot dimension and without dimensions of size 1."""
    item = tensor.element_size()
    slot_dim %= tensor.ndim
    dims = [
        (int(size), int(stride) * item)
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if dim != slot_dim and size > 1
    ]
    slot_stride = int(tensor.stride(slot_dim)) * item
    if tensor.shape[slot_dim] == 1:  # torch may give any stride to a dimension of size 1
        slot_stride = sum((size - 1) * stride for size, stride in dims) + item
    shape, strides = tuple(size for size, _ in dims), tuple(stride for _, stride in dims)
    return Part(segment, int(tensor.storage_offset()) * item, slot_stride, shape, strides)


def _layers(groups: list[list[torch.Tensor]], parts: tuple[Part, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the canonical shapes: K and V of equal shape are one layer with a leading 2, else two layers."""
    layers: list[tuple[int, ...]] = []
    rest = iter(parts)
    for group in groups:
        shapes = [next(rest).shape for _ in group]
        layers += [(2, *shapes[0])] if len(shapes) == 2 and shapes[0] == shapes[1] else shapes
    return tuple(layers)
