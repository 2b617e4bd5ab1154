"""The list of cases that tests and benchmarks share: shapes of blocks, and the forms in which engines lay them out.

A *shape* describes one layer's block; a *form* says how the blocks of all layers lie in memory. Forms of one family
hold the same logical content, so blocks can be copied between any two. ``CASES`` are pairs that occur in real engines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kvmarket.layout.layout import Layout
from kvmarket.layout.paged import PagedCache, SlotArray


@dataclass(frozen=True)
class Shape:
    """One layer's block by family: "kv" (2, tokens, heads, dim), "fused" (heads, tokens, dim), "mla" (tokens, dim)."""

    family: str
    block_size: int
    heads: int
    dim: int
    dtype: torch.dtype = torch.bfloat16

    def logical(self) -> tuple[int, ...]:
        """Logical shape of one layer's block."""
        tokens, heads, dim = self.block_size, self.heads, self.dim
        return {"kv": (2, tokens, heads, dim), "fused": (heads, tokens, dim), "mla": (tokens, dim)}[self.family]


Alloc = Callable[..., torch.Tensor]  # sizes -> contiguous tensor of the shape's dtype, random bits
Layers = list[torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
Form = Callable[[Shape, int, int, Alloc], tuple[Layers, int]]  # (shape, layers, slots, alloc) -> (layers, slot_dim)

FORMS: dict[str, dict[str, Form]] = {"kv": {}, "fused": {}, "mla": {}}


def form(family: str) -> Callable[[Form], Form]:
    """Decorate a function: register it as a form of this family, under its name."""

    def register(function: Form) -> Form:
        FORMS[family][function.__name__] = function
        return function

    return register


@form("kv")
def nhd_pair(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    sizes = (slots, s.block_size, s.heads, s.dim)
    return [(alloc(*sizes), alloc(*sizes)) for _ in range(layers)], 0


@form("kv")
def hnd_pair(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    sizes = (slots, s.heads, s.block_size, s.dim)
    return [(alloc(*sizes).transpose(1, 2), alloc(*sizes).transpose(1, 2)) for _ in range(layers)], 0


@form("kv")
def kv_first(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(2, slots, s.block_size, s.heads, s.dim) for _ in range(layers)], 1


@form("kv")
def kv_first_hnd(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(2, slots, s.heads, s.block_size, s.dim).transpose(2, 3) for _ in range(layers)], 1


@form("kv")
def block_first(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(slots, 2, s.block_size, s.heads, s.dim) for _ in range(layers)], 0


@form("kv")
def side_by_side(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    both = [alloc(slots, s.block_size, s.heads, 2 * s.dim) for _ in range(layers)]
    return [(t[..., : s.dim], t[..., s.dim :]) for t in both], 0


@form("kv")
def interleaved(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    """K and V alternate element by element: the slowest form to copy."""
    both = [alloc(slots, s.block_size, s.heads, s.dim, 2) for _ in range(layers)]
    return [(t[..., 0], t[..., 1]) for t in both], 0


@form("kv")
def one_storage(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return list(alloc(layers, 2, slots, s.block_size, s.heads, s.dim).unbind(0)), 1


@form("kv")
def block_outermost(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return list(alloc(slots, layers, 2, s.block_size, s.heads, s.dim).unbind(1)), 0


@form("kv")
def padded(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    """Unused elements before the first slot, between rows and between slots."""
    rows = [alloc(1 + slots, 2, s.block_size + 1, s.heads, s.dim + 3) for _ in range(layers)]
    return [t[1:, :, : s.block_size, :, 1 : 1 + s.dim] for t in rows], 0


@form("fused")
def hnc(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(slots, s.heads, s.block_size, s.dim) for _ in range(layers)], 0


@form("fused")
def nhc(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    """vLLM 0.26 on GPUs: logical [head][token], physical [token][head]."""
    return [alloc(slots, s.block_size, s.heads, s.dim).transpose(1, 2) for _ in range(layers)], 0


@form("fused")
def hnc_one_storage(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    """vLLM 0.32 on CPUs: all layers are views of one storage."""
    return list(alloc(layers, slots, s.heads, s.block_size, s.dim).unbind(0)), 0


@form("fused")
def nhc_block_outermost(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return list(alloc(slots, layers, s.block_size, s.heads, s.dim).transpose(2, 3).unbind(1)), 0


@form("mla")
def latent(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(slots, s.block_size, s.dim) for _ in range(layers)], 0


@form("mla")
def latent_one_head(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(slots, 1, s.block_size, s.dim) for _ in range(layers)], 0


@form("mla")
def latent_padded(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return [alloc(slots, s.block_size, s.dim + 8)[..., : s.dim] for _ in range(layers)], 0


@form("mla")
def latent_block_outermost(s: Shape, layers: int, slots: int, alloc: Alloc) -> tuple[Layers, int]:
    return list(alloc(slots, layers, s.block_size, s.dim).unbind(1)), 0


@dataclass(frozen=True, eq=False)
class Made:
    """A cache, and the tensors from which it was made."""

    cache: PagedCache
    tensors: Layers
    slot_dim: int
    shape: Shape

    @property
    def array(self) -> SlotArray:
        return self.cache.slot_array()

    def fill(self, content: torch.Tensor) -> None:
        """Write `content`, (layers, slots, *logical) integers of the dtype's item size, into the tensors."""
        for tensor, values in zip(self.tensors, content, strict=True):
            halves = zip(tensor, values.unbind(1), strict=True) if isinstance(tensor, tuple) else [(tensor, values)]
            for part, value in halves:
                own = part.view(content.dtype) if part.dtype != content.dtype else part
                own.movedim(self.slot_dim, 0).copy_(value.reshape(own.movedim(self.slot_dim, 0).shape))


def make(name: str, shape: Shape, layers: int, slots: int, device: str = "cpu", seed: int = 0) -> Made:
    """Make a cache in one form, with random bits in all of its memory, gaps included."""
    generator = torch.Generator(device).manual_seed(seed)

    def alloc(*sizes: int) -> torch.Tensor:
        count = torch.Size(sizes).numel() * shape.dtype.itemsize
        bits = torch.randint(0, 256, (count,), dtype=torch.uint8, device=device, generator=generator)
        return bits.view(shape.dtype).view(sizes)

    tensors, slot_dim = FORMS[shape.family][name](shape, layers, slots, alloc)
    return Made(PagedCache(tensors, shape.block_size, slot_dim), tensors, slot_dim, shape)


def packed(layout: Layout, slots: int, device: str = "cpu", seed: int = 0) -> SlotArray:
    """Make a packed array of `slots` slots for this layout, with random bits."""
    size = slots * layout.slot_bytes
    generator = torch.Generator(device).manual_seed(seed)
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device, generator=generator)
    return SlotArray(layout.as_packed(slots), [bits])


def clone(array: SlotArray) -> SlotArray:
    """A copy of the array: equal bytes at other addresses."""
    return SlotArray(array.layout, [segment.clone() for segment in array.segments])


@dataclass(frozen=True)
class Case:
    """A pair of forms that occurs in real engines; ``source`` or ``destination`` may be "packed"."""

    name: str
    shape: Shape
    source: str
    destination: str

    def arrays(self, layers: int, slots: int, device: str = "cpu", seed: int = 0) -> tuple[SlotArray, SlotArray]:
        """Make source and destination, with different random bits."""
        some = next(iter(FORMS[self.shape.family]))
        layout = make(some, self.shape, layers, 1, device).cache.layout
        sides = []
        for name, salt in ((self.source, 1), (self.destination, 2)):
            if name == "packed":
                sides.append(packed(layout, slots, device, seed + salt))
            else:
                sides.append(make(name, self.shape, layers, slots, device, seed + salt).array)
        return sides[0], sides[1]


_LLAMA = Shape("kv", 16, 8, 128)
_VLLM = Shape("fused", 16, 8, 256)
_VLLM_CPU = Shape("fused", 32, 8, 256)
_MLA = Shape("mla", 64, 1, 576)
_MLA_FP8 = Shape("mla", 64, 1, 656, torch.uint8)
_FP8 = Shape("kv", 16, 8, 128, torch.float8_e4m3fn)
_SMALL = Shape("kv", 8, 4, 64)
_LARGE = Shape("kv", 128, 8, 128)
_ODD = Shape("kv", 8, 3, 5)

CASES = [
    Case("pack llama nhd", _LLAMA, "nhd_pair", "packed"),
    Case("pack llama hnd", _LLAMA, "hnd_pair", "packed"),
    Case("pack vllm 0.26", _VLLM, "nhc", "packed"),
    Case("pack mla", _MLA, "latent", "packed"),
    Case("pack fp8", _FP8, "kv_first", "packed"),
    Case("scatter llama nhd", _LLAMA, "packed", "nhd_pair"),
    Case("scatter llama hnd", _LLAMA, "packed", "hnd_pair"),
    Case("scatter vllm 0.26", _VLLM, "packed", "nhc"),
    Case("scatter vllm 0.32 cpu", _VLLM_CPU, "packed", "hnc_one_storage"),
    Case("scatter mla fp8", _MLA_FP8, "packed", "latent_padded"),
    Case("pull llama nhd", _LLAMA, "nhd_pair", "nhd_pair"),
    Case("pull llama nhd to hnd", _LLAMA, "nhd_pair", "hnd_pair"),
    Case("pull side by side to kv first", _LLAMA, "side_by_side", "kv_first"),
    Case("pull vllm 0.26", _VLLM, "nhc", "nhc"),
    Case("pull block outermost", _VLLM, "nhc_block_outermost", "nhc_block_outermost"),
    Case("pull small blocks", _SMALL, "block_first", "side_by_side"),
    Case("pull large blocks", _LARGE, "kv_first", "block_first"),
    Case("pull odd sizes", _ODD, "padded", "hnd_pair"),
    Case("pull interleaved", _ODD, "interleaved", "one_storage"),
    Case("pull packed", _LLAMA, "packed", "packed"),
]
