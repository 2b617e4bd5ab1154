"""PagedCache and Layout: what they accept, what they refuse, and that they say the truth about every byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.micro.forms import FORMS, Shape, make
from kvmarket.errors import LayoutError
from kvmarket.layout.layout import Layout, Part
from kvmarket.layout.overlap import overlapping_parts
from kvmarket.layout.paged import PagedCache, SlotArray

KV = Shape("kv", 16, 8, 64)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FORMS for name in FORMS[family]])
def test_forms_of_one_family_have_one_geometry(family: str, name: str):
    shape = Shape(family, 16, 2, 24)
    layout = make(name, shape, layers=3, slots=5).cache.layout
    assert layout.layers == (shape.logical(),) * 3
    assert layout.geometry() == make(next(iter(FORMS[family])), shape, 3, 2).cache.layout.geometry()
    assert layout.slot_bytes == 3 * torch.Size(shape.logical()).numel() * 2
    assert (layout.slots, layout.block_size, layout.dtype, layout.item_bytes) == (5, 16, "bfloat16", 2)
    assert not layout.packed


def test_parts_are_where_the_tensors_are():
    made = make("side_by_side", KV, layers=2, slots=3)
    for view, tensor in zip(made.array.part_views(), itertools.chain(*made.tensors), strict=True):
        assert view.data_ptr() == tensor.data_ptr()
        assert view.shape == tensor.shape and view.stride() == tensor.stride()
    assert made.cache.storages()[0].data_ptr() == made.array.addresses()[0]
    assert len(made.cache.storages()) == len(made.cache.layout.segments) == 2


def test_vllm_page_shape():
    """0.26 on GPUs: physically [block][token][head][K|V]."""
    tensor = torch.empty(4 * 32768, dtype=torch.bfloat16).as_strided((4, 8, 16, 256), (32768, 256, 2048, 1))
    cache = PagedCache({"layers.0": tensor, "layers.1": tensor.clone(memory_format=torch.preserve_format)})
    assert cache.layout.parts[0] == Part(0, 0, 65536, (8, 16, 256), (512, 4096, 2))
    assert cache.layout.geometry() == "bfloat16, 16 tokens, 2 x [8,16,256]"
    assert (cache.slots, cache.slot_bytes, cache.block_size) == (4, 131072, 16)
    assert (cache.dtype, cache.device) == (torch.bfloat16, torch.device("cpu"))


def test_slot_dim_may_be_negative_and_in_the_middle():
    tensor = torch.arange(2 * 3 * 4, dtype=torch.int32).view(2, 3, 4)
    for slot_dim in (1, -2):
        cache = PagedCache([tensor], block_size=8, slot_dim=slot_dim)
        assert torch.equal(cache.slot_array().part_views()[0], tensor.movedim(1, 0))


def test_k_and_v_of_different_shapes_are_two_layers():
    cache = PagedCache([(torch.zeros(4, 16, 192), torch.zeros(4, 16, 128))])
    assert cache.layout.layers == ((16, 192), (16, 128))


def test_packed():
    layout = make("nhd_pair", KV, layers=2, slots=3).cache.layout
    packed = layout.as_packed(7)
    assert packed.packed and packed.slots == 7 and packed.segments == (7 * layout.slot_bytes,)
    assert packed.geometry() == layout.geometry() and packed.slot_bytes == layout.slot_bytes
    assert packed.as_packed(7) == packed
    assert PagedCache([torch.zeros(4, 2, 16, 8)]).layout.packed, "one contiguous layer is packed as it is"
    assert not PagedCache([torch.zeros(4, 16, 8).transpose(1, 2)]).layout.packed
    assert not PagedCache([torch.zeros(4, 17, 8)[:, :16]]).layout.packed
    assert PagedCache([torch.zeros(4)]).layout.as_packed(1).parts[0].shape == (1,)
    with pytest.raises(LayoutError, match="0 slots"):
        layout.as_packed(0)


def test_geometry_tells_apart_what_must_not_mix():
    shapes = [KV, Shape("kv", 32, 8, 64), Shape("kv", 16, 4, 64), Shape("kv", 16, 8, 64, torch.float16)]
    texts = {make("nhd_pair", shape, layers, 1).cache.layout.geometry() for shape in shapes for layers in (1, 2)}
    assert len(texts) == 8


def test_slot_array_follows_its_memory_into_shared_memory():
    made = make("one_storage", KV, layers=2, slots=3)
    before = made.array
    assert made.cache.slot_array() is before
    bits = before.segments[0].clone()
    made.cache.storages()[0].share_memory_()
    after = made.cache.slot_array()
    assert after is not before and after.addresses() == (made.tensors[0].data_ptr(),)
    assert torch.equal(after.segments[0], bits)


def test_layout_travels():
    layout = make("padded", KV, layers=2, slots=3).cache.layout
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(layout), type=Layout) == layout


LIES: list[Callable[[Layout], dict[str, object]]] = [
    lambda layout: {"slots": layout.slots + 1},
    lambda layout: {"slots": 0},
    lambda layout: {"slots": 2**62},
    lambda layout: {"block_size": 0},
    lambda layout: {"dtype": "complex64"},
    lambda layout: {"dtype": "float32"},
    lambda layout: {"dtype": "nn"},
    lambda layout: {"item_bytes": 4},
    lambda layout: {"slot_bytes": layout.slot_bytes + 2},
    lambda layout: {"layers": ()},
    lambda layout: {"layers": layout.layers[1:]},
    lambda layout: {"layers": tuple((*shape, 1) for shape in layout.layers)},
    lambda layout: {"layers": tuple(shape[::-1] for shape in layout.layers)},
    lambda layout: {"parts": ()},
    lambda layout: {"parts": layout.parts[::-1][:1]},
    lambda layout: {"packed": True},
    lambda layout: {"segments": layout.segments[:1]},
    lambda layout: {"segments": tuple(size - 1 for size in layout.segments)},
    lambda layout: {"parts": tuple(msgspec.structs.replace(part, segment=-1) for part in layout.parts)},
    lambda layout: {"parts": tuple(msgspec.structs.replace(part, offset=-2) for part in layout.parts)},
    lambda layout: {"parts": tuple(msgspec.structs.replace(part, offset=1) for part in layout.parts)},
    lambda layout: {"parts": tuple(msgspec.structs.replace(part, slot_stride=0) for part in layout.parts)},
    lambda layout: {"parts": tuple(msgspec.structs.replace(part, strides=part.strides[1:]) for part in layout.parts)},
    lambda layout: {
        "parts": tuple(msgspec.structs.replace(part, strides=(-2, *part.strides[1:])) for part in layout.parts)
    },
]


@pytest.mark.parametrize("lie", LIES)
def test_received_layout_that_lies_is_refused(lie: Callable[[Layout], dict[str, object]]):
    layout = make("nhd_pair", KV, layers=2, slots=3).cache.layout
    fields = {**msgspec.structs.asdict(layout), **lie(layout)}
    with pytest.raises(LayoutError):
        Layout(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Layout)


def test_received_layers_that_are_not_the_parts_are_refused():
    """Though they have as many elements: a geometry is told by the layers, and bytes move by the parts."""
    layout = PagedCache([strided(3, 16, 2, 4), strided(3, 16, 2, 4)]).layout
    fields = msgspec.structs.asdict(layout)
    Layout(**fields)
    for layers in (((16, 4, 2), (16, 2, 4)), ((16, 2, 4), (128,)), ((2, 16, 4), (16, 2, 4))):
        with pytest.raises(LayoutError, match="no layers"):
            Layout(**{**fields, "layers": layers})


def strided(*sizes: int) -> torch.Tensor:
    return torch.zeros(*sizes, dtype=torch.bfloat16)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no layers": (lambda: PagedCache([]), "no layers"),
    "one tensor": (lambda: PagedCache(strided(2, 4, 8)), "unbind"),
    "three tensors": (lambda: PagedCache([(strided(4, 8),) * 3]), "layer 0 is neither"),
    "no tensor": (lambda: PagedCache([(strided(4, 8), 3)]), "layer 0 is neither"),
    "sparse": (lambda: PagedCache([strided(4, 8).to_sparse()]), "sparse"),
    "complex": (lambda: PagedCache([torch.zeros(4, 8, dtype=torch.complex64)]), "complex"),
    "meta": (lambda: PagedCache([torch.zeros(4, 8, device="meta")]), "CPU or CUDA"),
    "scalar": (lambda: PagedCache([torch.zeros(())]), "no dimension 0"),
    "slot_dim": (lambda: PagedCache([strided(4, 8)], slot_dim=2), "no dimension 2"),
    "wrong slot_dim": (lambda: PagedCache([strided(4, 2, 8), strided(4, 3, 8)], slot_dim=1), "slots"),
    "dtypes": (lambda: PagedCache([strided(4, 8), torch.zeros(4, 8)]), "differs from tensor 0"),
    "slots": (lambda: PagedCache([strided(4, 8), strided(5, 8)]), "5 slots"),
    "empty": (lambda: PagedCache([strided(4, 0)]), "empty"),
    "no slots": (lambda: PagedCache([strided(0, 4)]), "empty"),
    "expanded": (lambda: PagedCache([strided(4, 1, 8).expand(4, 3, 8)]), "expanded"),
    "expanded slots": (lambda: PagedCache([strided(1, 8).expand(4, 8)]), "expanded"),
    "block_size 0": (lambda: PagedCache([strided(4, 8)], block_size=0), "0 tokens"),
    "block_size 1.5": (lambda: PagedCache([strided(4, 8)], block_size=1.5), "1.5 tokens"),  # type: ignore[arg-type]
    "twice": (lambda: PagedCache([cache := strided(4, 8), cache]), "share memory"),
    "windows": (lambda: PagedCache([strided(64).as_strided((4, 8), (4, 1))]), "share memory"),
    "K is V": (lambda: PagedCache([(cache := strided(4, 8), cache.view(4, 8))]), "share memory"),
    "other stride": (lambda: PagedCache([(cache := strided(8, 8))[:4], cache.view(4, 16)[:, 8:]]), "share memory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_form_no_cache(name: str):
    make_it, message = WRONG[name]
    with pytest.raises(LayoutError, match=message):
        make_it()


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """Small layouts, most of them nonsense, and addresses of two segments that may touch but not overlap."""
    slots = draw(st.integers(1, 4))
    strides = draw(st.lists(st.integers(1, 40), min_size=1, max_size=2))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        dims = draw(st.lists(st.tuples(st.integers(2, 4), st.integers(1, 20)), max_size=2))
        shape, steps = tuple(size for size, _ in dims), tuple(step for _, step in dims)
        segment, offset = draw(st.integers(0, 1)), draw(st.integers(0, 60))
        parts.append(Part(segment, offset, draw(st.sampled_from(strides)), shape, steps))
    shapes = tuple(part.shape for part in parts)
    total = sum(part.items for part in parts)
    layout = Layout(slots, 8, "uint8", 1, shapes, tuple(parts), (1000, 1000), total, packed=False)
    return layout, (5000, draw(st.sampled_from([4000, 6000, 9000])))


@given(layouts())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_overlap_is_found_exactly(drawn: tuple[Layout, tuple[int, ...]]):
    layout, bases = drawn
    touched = []
    for number, part in enumerate(layout.parts):
        start = bases[part.segment] + part.offset + np.arange(layout.slots) * part.slot_stride
        for size, stride in zip(part.shape, part.strides, strict=True):
            start = (start[:, None] + np.arange(size) * stride).reshape(-1)
        touched += [(int(byte), number) for byte in start]
    shared = len({byte for byte, _ in touched}) < len(touched)
    clash = overlapping_parts(layout, bases)
    if shared or len({part.slot_stride for part in layout.parts}) == 1 or layout.slots == 1:
        assert (clash is not None) == shared
    if clash is not None and len({part.slot_stride for part in layout.parts}) == 1:
        ours, theirs = ([byte for byte, number in touched if number == which] for which in clash)
        assert len(set(ours)) < len(ours) if clash[0] == clash[1] else set(ours) & set(theirs)


def test_segments_that_do_not_fit():
    layout = make("nhd_pair", KV, layers=1, slots=2).cache.layout
    size = layout.segments[0]
    good = torch.zeros(size, dtype=torch.uint8)
    SlotArray(layout, [good, torch.zeros(size + 5, dtype=torch.uint8)])
    for bad in ([good], [good, good[1:]], [good, torch.zeros(size)], [good, good.view(2, -1)], [good, good.to("meta")]):
        with pytest.raises(LayoutError):
            SlotArray(layout, bad)
