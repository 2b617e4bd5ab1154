"""The plan of a copy: every byte once, and as few pieces as there can be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.micro.forms import Shape, clone, make
from kvmarket.errors import LayoutError
from kvmarket.kernels import Fragments, fragments, pull_reference
from kvmarket.layout.layout import Layout
from kvmarket.layout.paged import SlotArray
from tests.bitwise import assert_bitwise
from tests.kernels.arrays import pairs


def copy_by_plan(plan: Fragments, source: SlotArray, source_slot: int, destination: SlotArray, slot: int) -> None:
    """The dullest way to carry a plan out."""
    for f in range(len(plan)):
        here = plan.destination_offset[f] + slot * plan.destination_stride[f]
        there = plan.source_offset[f] + source_slot * plan.source_stride[f]
        bits = source.segments[plan.source_segment[f]][there : there + plan.length]
        destination.segments[plan.destination_segment[f]][here : here + plan.length] = bits


@given(way=st.sampled_from(["pack", "scatter", "pull"]), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_plan_copies_every_byte_once(way: str, data: st.DataObject):
    source, destination = data.draw(pairs(way))
    plan = fragments(source.layout, destination.layout)
    assert len(plan) * plan.length == source.layout.slot_bytes
    if len(plan) <= 5000:
        expected, first, last = clone(destination), source.layout.slots - 1, destination.layout.slots - 1
        copy_by_plan(plan, source, first, destination, last)
        pull_reference(source, torch.tensor([first]), expected, torch.tensor([last]))
        assert_bitwise(destination, expected)
    figures = [plan.source_offset, plan.source_stride, plan.destination_offset, plan.destination_stride]
    assert not any((figure % plan.align).any() for figure in figures) and plan.length % plan.align == 0
    assert bool((np.diff(plan.source_offset)[np.diff(plan.source_segment) == 0] > 0).all()), "ascending in the source"


def test_items_apart_are_no_run_though_they_are_as_many_as_their_bytes():
    shape = Shape("kv", 8, 3, 2)
    source, destination = (make(name, shape, 1, 2).array for name in ("interleaved", "nhd_pair"))
    expected = clone(destination)
    copy_by_plan(fragments(source.layout, destination.layout), source, 1, destination, 0)
    pull_reference(source, torch.tensor([1]), expected, torch.tensor([0]))
    assert_bitwise(destination, expected)


def layout(name: str, shape: Shape, layers: int = 4, slots: int = 3) -> Layout:
    return make(name, shape, layers, slots).cache.layout


def test_same_physical_order_is_one_piece_per_layer_whatever_the_logical_order():
    cache = torch.empty(3 * 8 * 16 * 256, dtype=torch.bfloat16).as_strided((3, 8, 16, 256), (32768, 256, 2048, 1))
    ours = make("nhc", Shape("fused", 16, 8, 256), 4, 3)
    assert ours.tensors[0].shape == cache.shape and ours.tensors[0].stride() == cache.stride()
    plan = fragments(ours.cache.layout, ours.cache.layout)
    assert (plan.length, len(plan), plan.align) == (65536, 4, 16)


def test_both_sides_count_for_the_alignment():
    shape = Shape("kv", 8, 4, 64)
    aligned, padded = layout("nhd_pair", shape), layout("padded", shape)
    assert fragments(aligned, aligned).align == 16
    assert fragments(aligned, padded).align == fragments(padded, aligned).align == fragments(padded, padded).align == 2


def test_pieces_are_as_long_as_both_sides_allow():
    llama, vllm = Shape("kv", 16, 8, 128), Shape("fused", 16, 8, 256)
    expected = {
        ("nhd_pair", "nhd_pair"): (32768, 8),
        ("nhd_pair", "block_first"): (32768, 8),
        ("block_first", "block_first"): (65536, 4),
        ("block_outermost", "block_outermost"): (262144, 1),
        ("hnd_pair", "hnd_pair"): (32768, 8),
        ("nhd_pair", "hnd_pair"): (256, 1024),
        ("nhd_pair", "side_by_side"): (256, 1024),
        ("side_by_side", "side_by_side"): (65536, 4),
    }
    for (one, other), size in expected.items():
        plan = fragments(layout(one, llama), layout(other, llama))
        assert (plan.length, len(plan)) == size, (one, other)
    permuted = layout("nhc", vllm)
    plan = fragments(permuted, permuted.as_packed(7))
    assert (plan.length, len(plan)) == (512, 512)
    plan = fragments(permuted.as_packed(2), permuted.as_packed(7))
    assert (plan.length, len(plan)) == (262144, 1)


def test_alignment_is_what_divides_everything():
    cases = [(8, torch.bfloat16, 16), (4, torch.bfloat16, 8), (1, torch.float32, 4), (3, torch.uint8, 1)]
    for dim, dtype, align in cases:
        shape = Shape("kv", 8, 3, dim, dtype)
        plan = fragments(layout("nhd_pair", shape), layout("hnd_pair", shape))
        assert plan.align == align


def test_other_geometries_are_refused():
    shape = Shape("kv", 16, 2, 8)
    ours = layout("nhd_pair", shape)
    half = Shape("kv", 16, 2, 8, torch.float16)
    others = [Shape("kv", 8, 2, 8), Shape("kv", 16, 4, 4), half, Shape("mla", 16, 1, 32)]
    for other in others:
        form = "latent" if other.family == "mla" else "nhd_pair"
        with pytest.raises(LayoutError, match="do not fit"):
            fragments(ours, layout(form, other))
    with pytest.raises(LayoutError, match="do not fit"):
        fragments(ours, layout("nhd_pair", shape, layers=3))
