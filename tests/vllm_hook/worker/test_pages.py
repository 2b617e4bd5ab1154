"""vLLM's KV tensors as pages: each shape that a version or a backend gives them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kvmarket.errors import LayoutError
from vllm_hook.worker.pages import Pages, page_view

B, N, H, D = 6, 16, 2, 8


@pytest.mark.parametrize(
    ("shape", "order", "inner"),
    [
        ((B, H, N, 2 * D), (0, 1, 2, 3), (H, N, 2 * D)),
        ((B, H, N, 2 * D), (0, 2, 1, 3), (N, H, 2 * D)),
        ((B, H, N, 2 * D), (1, 0, 2, 3), (H, N, 2 * D)),
        ((B, 2, N, H, D), (0, 1, 2, 3, 4), (2, N, H, D)),
        ((2, B, N, H, D), (0, 1, 2, 3, 4), (2, N, H, D)),
        ((B, N, 4 * D), (0, 1, 2), (N, 4 * D)),
    ],
)
def test_block_dimension_comes_first_and_the_rest_lies_as_in_memory(
    shape: tuple[int, ...], order: tuple[int, ...], inner: tuple[int, ...]
):
    memory = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view([shape[dim] for dim in order])
    tensor = memory.permute([order.index(dim) for dim in range(len(shape))])
    view, _ = page_view(tensor, B, tensor.numel() // B * 4)
    assert tuple(size for size in view.shape if size > 1) == (B, *inner)
    assert view.data_ptr() == tensor.data_ptr()
    page = view[1].reshape(-1)
    assert page.tolist() == sorted(page.tolist()), "the canonical order is not the physical one"


def test_kernel_blocks_smaller_than_the_managers():
    tensor = torch.zeros(B * 4, H, N, 2 * D)
    view, shape = page_view(tensor, B, 4 * H * N * 2 * D * 4)
    assert view.shape[:2] == (B, 4) and "(4, 2, 16, 16)" in shape


def test_equal_shapes_of_different_meaning_are_told_apart():
    tensor = torch.zeros(B, N, N, D)
    one, other = page_view(tensor, B, N * N * D * 4), page_view(tensor.transpose(1, 2), B, N * N * D * 4)
    assert one[0].shape == other[0].shape and one[1] != other[1]


@pytest.mark.parametrize(
    ("shape", "blocks", "page"), [((5, 7), 6, 28), ((2, 2, 4), 2, 16), ((6, 8), 6, 64)], ids=["none", "both", "padded"]
)
def test_what_is_no_array_of_pages(shape: tuple[int, ...], blocks: int, page: int):
    with pytest.raises(LayoutError, match="not supported"):
        page_view(torch.zeros(shape), blocks, page)


def test_layers_that_share_a_tensor_count_once():
    spec = SimpleNamespace(page_size_bytes=H * N * 2 * D * 4, block_size=N)
    config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)], num_blocks=B)
    first, second = torch.zeros(B, H, N, 2 * D), torch.zeros(B, H, N, 2 * D)
    pages = Pages({"a": first, "b": second, "c": first}, config)
    assert len(pages.cache.layout.layers) == 2 and pages.cache.slots == B
    with pytest.raises(LayoutError, match="only tensors"):
        Pages({"a": [first]}, config)  # type: ignore[dict-item]
