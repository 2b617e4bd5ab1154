"""vLLM's KV tensors as one `PagedCache`, in which the bytes of a page are ordered as they lie in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from kvmarket.errors import LayoutError
from kvmarket.layout.paged import PagedCache


class Pages:
    """The pages of one rank: `cache`, and the text `shape`. Where `shape` is equal, equal bytes mean the same KV."""

    def __init__(self, kv_caches: Mapping[str, torch.Tensor], kv_cache_config: Any) -> None:
        """Take the KV tensors by layer name; layers that share a tensor count once.

        In each tensor the block dimension is moved to the front, and the others are ordered by stride. Raises
        LayoutError for a tensor that is no plain array of pages.
        """
        (group,) = kv_cache_config.kv_cache_groups
        spec = group.kv_cache_spec
        views: dict[tuple[object, ...], torch.Tensor] = {}
        shapes = []
        for name, tensor in kv_caches.items():
            if not isinstance(tensor, torch.Tensor):
                raise LayoutError(
                    f"layer {name} has a {type(tensor).__name__} for a KV cache; only tensors are supported"
                )
            key = (tensor.data_ptr(), tensor.shape, tensor.stride())
            if key not in views:
                views[key], shape = page_view(tensor, kv_cache_config.num_blocks, spec.page_size_bytes)
                shapes.append(f"{name}: {shape}")
        self.names = tuple(kv_caches)
        self.cache = PagedCache(list(views.values()), block_size=spec.block_size, slot_dim=0)
        self.shape = "; ".join(shapes)


def page_view(tensor: torch.Tensor, blocks: int, page_bytes: int) -> tuple[torch.Tensor, str]:
    """A view of `tensor` as (blocks, ...), the other dimensions by falling stride; and a text that describes them.

    No copy. Where attention kernels use smaller blocks than vLLM's block manager, several to one, the smaller blocks
    become a dimension of the page. Raises LayoutError when a page's elements are not all of its `page_bytes` bytes.
    """
    dim = _block_dim(tensor, blocks)
    ratio = tensor.shape[dim] // blocks
    view = tensor.view(*tensor.shape[:dim], blocks, ratio, *tensor.shape[dim + 1 :])
    view = view.movedim(dim, 0)
    shown = view[0].numel() * view.element_size()
    if shown != page_bytes:
        raise LayoutError(
            f"a page has {page_bytes} bytes, of which the tensor {tuple(tensor.shape)} shows {shown}; "
            "pages with padding or with hidden scales are not supported"
        )
    strides = view.stride()
    order = sorted(range(1, view.ndim), key=lambda dim: (-strides[dim], dim))
    return view.permute(0, *order), f"{tuple(view.shape[1:])} {tensor.dtype} ordered {tuple(order)}"


def _block_dim(tensor: torch.Tensor, blocks: int) -> int:
    """The index of the block dimension: 0, or 1 where dimension 0 is K and V. Raises LayoutError without one."""
    pair = tensor.ndim > 1 and tensor.shape[0] == 2 and tensor.shape[1] % blocks == 0
    if tensor.shape[0] % blocks == 0 and not (pair and blocks <= 2):
        return 0
    if pair and blocks > 2:
        return 1
    raise LayoutError(
        f"{tuple(tensor.shape)} has no dimension that counts {blocks} blocks; this attention backend is not supported"
    )
