"""Whole fetches between caches in each layout that vLLM's versions and attention backends give them, bit for bit."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvmarket
from kvmarket.kernels.addresses.fragments import fragments
from vllm_hook.engine import compat, limits
from vllm_hook.worker.pages import Pages

L, B, H, N, C = 3, 7, 2, 16, 24  # layers, blocks, heads, tokens, elements of a token and head
FIVE = {  # the physical orders of vLLM 0.30 and later, of logical [L, B, H, N, C]
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}


@dataclass(frozen=True)
class Cache:
    """The KV tensors of an engine: one storage of random bytes in this order, seen as one tensor per layer."""

    shape: tuple[int, ...] = (L, B, H, N, C)  # logical, layers first
    order: tuple[int, ...] = (0, 1, 2, 3, 4)  # physical
    dtype: torch.dtype = torch.bfloat16
    block_dim: int = 0  # of a layer's tensor
    ratio: int = 1  # kernel blocks per block
    tokens: int = N

    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        physical = [self.shape[dim] for dim in self.order]
        make = torch.Generator().manual_seed(seed)
        size = math.prod(physical) * self.dtype.itemsize
        memory = torch.randint(0, 256, (size,), generator=make, dtype=torch.uint8).view(self.dtype).view(physical)
        logical = memory.permute([self.order.index(dim) for dim in range(len(self.order))])
        return {f"layers.{number}": logical[number] for number in range(self.shape[0])}

    def pages(self, tensors: dict[str, torch.Tensor]) -> Pages:
        page = math.prod(self.shape[1:]) // B * self.dtype.itemsize
        spec = SimpleNamespace(page_size_bytes=page, block_size=self.tokens)
        return Pages(tensors, SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)], num_blocks=B))

    def block(self, tensor: torch.Tensor, number: int) -> torch.Tensor:
        """The bits of one block of a layer, picked without the code under test."""
        first = number * self.ratio
        kernel_blocks = [tensor.select(self.block_dim, first + i) for i in range(self.ratio)]
        return torch.stack(kernel_blocks).contiguous().view(torch.uint8)


ONE_LAYOUT = {
    "0.26 FlashAttention": Cache((L, B, 8, N, C), (0, 1, 3, 2, 4)),
    "K and V in a block, NHD": Cache((L, B, 2, N, H, C), (0, 1, 2, 3, 4, 5)),
    "K and V in a block, HND": Cache((L, B, 2, N, H, C), (0, 1, 2, 4, 3, 5)),
    "K and V apart, NHD": Cache((L, 2, B, N, H, C), (0, 1, 2, 3, 4, 5), block_dim=1),
    "K and V apart, HND": Cache((L, 2, B, N, H, C), (0, 1, 2, 4, 3, 5), block_dim=1),
    "K and V apart, kernel blocks of 16 in blocks of 64": Cache(
        (L, 2, B * 4, N, H, C), (0, 1, 2, 3, 4, 5), block_dim=1, ratio=4, tokens=64
    ),
    "MLA": Cache((L, B, N, 576), (0, 1, 2, 3)),
    "MLA, one head": Cache((L, B, 1, 64, 576), (0, 1, 2, 3, 4), tokens=64),
    "fp8 as bytes": Cache(dtype=torch.uint8),
    "float8_e4m3fn": Cache(dtype=torch.float8_e4m3fn),
    "float8_e5m2": Cache(dtype=torch.float8_e5m2),
    "float32": Cache(dtype=torch.float32),
    "blocks of 32": Cache((L, B, H, 32, C), tokens=32),
    "blocks of 64": Cache((L, B, H, 64, C), (0, 1, 3, 2, 4), tokens=64),
    "kernel blocks of 16 in blocks of 32": Cache((L, B * 2, H, N, C), ratio=2, tokens=32),
    "kernel blocks of 16 in blocks of 64, NHD": Cache((L, B * 4, H, N, C), (0, 1, 3, 2, 4), ratio=4, tokens=64),
}
PAIRS = (
    {name: (cache, cache) for name, cache in ONE_LAYOUT.items()}
    | {
        f"{one} to {other}": (Cache(order=FIVE[one]), Cache(order=FIVE[other]))
        for one, other in itertools.product(FIVE, FIVE)
        if one.replace("L", "").index("H") < one.replace("L", "").index("N")
        if other.replace("L", "").index("H") < other.replace("L", "").index("N")
    }
    | {
        f"{one} to {other}": (Cache(order=FIVE[one]), Cache(order=FIVE[other]))
        for one, other in itertools.product(("LBNHC", "BLNHC"), repeat=2)
    }
)


@pytest.mark.parametrize(("source", "destination"), PAIRS.values(), ids=PAIRS.keys())
def test_fetch_is_bit_exact(market_address: str, request: pytest.FixtureRequest, source: Cache, destination: Cache):
    theirs, ours = source.tensors(1), destination.tensors(2)
    pages, own = source.pages(theirs), destination.pages(ours)
    assert pages.shape == own.shape
    before = {name: [destination.block(tensor, i).clone() for i in range(B)] for name, tensor in ours.items()}
    fingerprint = kvmarket.Fingerprint.of(test=request.node.name, pages=pages.shape)
    tokens = list(range(3 * source.tokens))
    with (
        kvmarket.connect(pages.cache, fingerprint, address=market_address) as owner,
        kvmarket.connect(own.cache, fingerprint, address=market_address) as reader,
    ):
        assert owner.publish(tokens, [6, 0, 3]) == 3
        end = time.monotonic() + 10
        while (hit := reader.match(tokens)).blocks < 3 and time.monotonic() < end:
            time.sleep(0.002)
        assert reader.fetch(hit, [1, 5, 2]).wait() == 3
        for name, tensor in ours.items():
            came = dict(zip([1, 5, 2], [6, 0, 3], strict=True))
            for slot in range(B):
                wanted = source.block(theirs[name], came[slot]) if slot in came else before[name][slot]
                assert torch.equal(destination.block(tensor, slot), wanted), f"{name}, block {slot}"


def test_layouts_of_other_meaning_never_share():
    shapes = {name: cache.pages(cache.tensors(0)).shape for name, cache in {**ONE_LAYOUT, "five": Cache()}.items()} | {
        "NHD": Cache(order=FIVE["LBNHC"]).pages(Cache(order=FIVE["LBNHC"]).tensors(0)).shape
    }
    assert len(set(shapes.values())) == len(shapes)


@pytest.mark.parametrize("name", FIVE)
def test_a_block_is_one_range_where_blocks_are_outermost(name: str):
    """So the copy engine moves it slot to slot; else it is one range per layer, or per layer and head."""
    cache = Cache(order=FIVE[name])
    layout = cache.pages(cache.tensors(0)).cache.layout
    pieces = {"B": 1, "LB": L, "LH": L * H}
    assert len(fragments(layout, layout)) == next(pieces[start] for start in pieces if name.startswith(start))


def test_what_vllm_makes_of_the_layout_that_is_asked_for():
    """One range per block. VLLM's attention on a CPU reads LBHNC alone, so that no engine here takes it."""
    made = pytest.importorskip("vllm.v1.kv_cache_interface", reason="vLLM is not installed")
    name = compat.block_outermost_layout()
    if name is None:
        pytest.skip(f"vLLM {compat.version()} has no block-outermost layout")
    spec = made.FullAttentionSpec(block_size=N, num_kv_heads=H, head_size=C, dtype=torch.bfloat16)
    page = spec.page_size_bytes
    raw = torch.zeros(L * B * page, dtype=torch.int8)
    names = [f"layers.{number}" for number in range(L)]
    place = made.KVCacheTensor(size=raw.numel(), layers=names, layer_stride=page, block_stride=L * page)
    views = made.create_kv_cache_views(raw, spec, B, made.KVCacheLayout[name], place)
    config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)], num_blocks=B)
    layout = Pages(dict(zip(names, views, strict=True)), config).cache.layout
    assert len(fragments(layout, layout)) == 1 and fragments(layout, layout).length == L * page


def asked(**changes: Any) -> str | None:
    extra = {name: value for name, value in changes.items() if name == "block_outermost"}
    return limits.layout_asked_for(
        SimpleNamespace(
            kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra),
            cache_config=SimpleNamespace(block_size=changes.get("block_size", 16)),
            model_config=SimpleNamespace(use_mla=changes.get("use_mla", False)),
        )
    )


def test_when_the_layout_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "block_outermost_layout", lambda: "BLHNC")
    assert asked() == asked(block_outermost=True) == asked(block_size=64) == "BLHNC"
    assert asked(block_outermost=False) is None
    assert asked(block_size=128) is None
    assert asked(use_mla=True) is None
    monkeypatch.setattr(compat, "block_outermost_layout", lambda: None)
    assert asked() is None
