"""Caches of equal shapes and other meaning do not share, and a block size that cannot be is refused."""

from __future__ import annotations

import msgspec
import pytest
import torch

import kvmarket
from bench.micro.forms import FORMS, Shape, make
from kvmarket import PagedCache
from kvmarket.errors import LayoutError
from kvmarket.layout.layout import Layout

FACTS = kvmarket.Fingerprint.of(model="shapes", dtype=torch.float32)


def test_tokens_and_heads_of_one_count_are_not_taken_for_each_other(market_address):
    nhd, hnd = (torch.zeros(16, 2, 4, 4, 8) for _ in range(2))
    for tensor in (nhd, hnd):
        with pytest.raises(LayoutError, match=r"\[2, 4, 4, 8\] have several dimensions of 4.*token_dim"):
            kvmarket.connect(PagedCache([tensor], block_size=4), FACTS, address=market_address)
        assert not tensor.is_shared(), "refused before anything was done"
    with kvmarket.connect(PagedCache([nhd], block_size=4, token_dim=2), FACTS, address=market_address):
        with pytest.raises(LayoutError, match="fingerprint"):
            kvmarket.connect(PagedCache([hnd], block_size=4, token_dim=3), FACTS, address=market_address)
        views = PagedCache([hnd.transpose(2, 3)], block_size=4, token_dim=-3)
        kvmarket.connect(views, FACTS, address=market_address).close()


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FORMS for name in FORMS[family]])
def test_caches_of_every_form_say_what_they_mean(family, name):
    for shape in (Shape(family, 16, 2, 24), Shape(family, 16, 4, 16), Shape(family, 2, 4, 8), Shape(family, 1, 1, 8)):
        make(name, shape, layers=2, slots=3).cache.check_meaning()


PLAIN = {
    "flat": ((4, 4096), 16),
    "one element": ((4,), 16),
    "K and V, flat": ((4, 2, 512), 16),
    "tokens and heads in one dimension": ((4, 2, 128, 64), 16),
    "tokens in two dimensions": ((4, 3, 4, 8, 5), 32),
    "tokens in the first two": ((4, 4, 8, 3), 32),
    "tokens in the last two": ((4, 3, 4, 8), 32),
    "tokens in all three": ((4, 4, 2, 3), 24),
    "blocks of blocks": ((4, 2, 2, 16, 8, 64), 32),
    "head of as many elements as tokens": ((4, 2, 16, 8, 16), 16),
    "the same, heads first": ((4, 2, 8, 16, 16), 16),
    "two tokens beside K and V": ((4, 2, 2, 8, 64), 2),
    "two tokens, or K and V": ((4, 2, 3, 5), 2),
    "blocks of one token": ((4, 2, 1, 1, 64), 1),
    "tokens last": ((4, 8, 64, 16), 16),
}


@pytest.mark.parametrize("name", PLAIN)
def test_shapes_that_leave_nothing_open(name):
    shape, block_size = PLAIN[name]
    PagedCache([torch.zeros(shape)], block_size=block_size).check_meaning()


OPEN = {
    "heads": ((4, 2, 16, 16, 64), 16),
    "heads of a fused cache": ((4, 16, 16, 64), 16),
    "two heads, two tokens": ((4, 2, 2, 2, 64), 2),
    "three": ((4, 16, 16, 16), 16),
}


@pytest.mark.parametrize("name", OPEN)
def test_shapes_that_have_to_be_explained(name):
    shape, block_size = OPEN[name]
    with pytest.raises(LayoutError, match="token_dim"):
        PagedCache([torch.zeros(shape)], block_size=block_size).check_meaning()
    PagedCache([torch.zeros(shape)], block_size=block_size, token_dim=-2).check_meaning()


def test_k_and_v_apart_are_no_dimension():
    pair = lambda *shape: PagedCache([(torch.zeros(shape), torch.zeros(shape))], block_size=2)  # noqa: E731
    pair(4, 2, 3, 8).check_meaning()
    with pytest.raises(LayoutError, match="token_dim"):
        pair(4, 2, 2, 8).check_meaning()


@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((16, 2, 16, 8), 32), ((16, 16, 8), 32), ((16, 16, 8), 7), ((16, 2, 16, 8, 64), 48)],
)
def test_block_sizes_that_cannot_be(market_address, shape, block_size):
    cache = PagedCache([torch.zeros(shape)], block_size=block_size)
    with pytest.raises(LayoutError, match=f"cannot hold block_size={block_size} tokens"):
        kvmarket.connect(cache, FACTS, address=market_address)


def test_every_layer_is_looked_at():
    layers = [torch.zeros(4, 2, 16, 2, 8), torch.zeros(4, 2, 16, 16, 8)]
    with pytest.raises(LayoutError, match="token_dim"):
        PagedCache(layers).check_meaning()


@pytest.mark.parametrize("dim", [1, 3, 4, -1])
def test_a_token_dim_of_another_size(dim):
    with pytest.raises(LayoutError, match=f"in dimension {dim}, not block_size=16.*token_dim"):
        PagedCache([torch.zeros(4, 2, 16, 3, 8)], token_dim=dim)


NONE = [(0, 0), (0, -5), (0, 5), (0, -6), (1, 1), (1, -4), (-4, 1), (1, 5), (1, -6)]


@pytest.mark.parametrize(("slot_dim", "dim"), NONE)
def test_a_token_dim_that_is_none(slot_dim, dim):
    with pytest.raises(LayoutError, match=r"no dimension .* beside its slots"):
        PagedCache([torch.zeros(16, 16, 16, 3, 8)], slot_dim=slot_dim, token_dim=dim)


@pytest.mark.parametrize("dim", [0, -4])
def test_a_token_dim_may_be_the_first(dim):
    assert PagedCache([torch.zeros(16, 4, 3, 8)], slot_dim=1, token_dim=dim).layout.layers == ((16, 3, 8),)


def test_a_name_counts_only_where_the_shape_leaves_it_open():
    named, plain = (PagedCache([torch.zeros(4, 2, 16, 3, 8)], token_dim=dim).layout.geometry() for dim in (2, None))
    assert named == plain == "float32, 16 tokens, 1 x [2,16,3,8]"
    heads = [torch.zeros(4, 2, 16, 16, 8) for _ in range(2)]
    assert PagedCache(heads, token_dim=2).layout.geometry() == "float32, 16 tokens, 2 x [2,16 tokens,16,8]"
    assert PagedCache(heads, token_dim=3).layout.geometry() == "float32, 16 tokens, 2 x [2,16,16 tokens,8]"
    assert PagedCache([torch.zeros(4, 1, 8)], block_size=1, token_dim=1).layout.token_dims == ()


def test_k_and_v_apart_mean_the_same_as_together():
    together = PagedCache([torch.zeros(2, 4, 16, 1, 16, 8)], slot_dim=1, token_dim=2)
    apart = PagedCache([(torch.zeros(4, 16, 1, 16, 8), torch.zeros(4, 16, 16, 8))], token_dim=1)
    other = PagedCache([(torch.zeros(4, 16, 16, 8), torch.zeros(4, 16, 16, 8))], token_dim=2)
    assert together.layout.geometry() == apart.layout.geometry() != other.layout.geometry()
    assert together.layout.as_packed(3).geometry() == together.layout.geometry()


def test_unlike_halves_are_layers_of_their_own():
    cache = PagedCache([(torch.zeros(4, 16, 16, 24), torch.zeros(4, 16, 16, 8))], token_dim=1)
    assert cache.layout.geometry() == "float32, 16 tokens, 1 x [16 tokens,16,24] + 1 x [16 tokens,16,8]"


@pytest.mark.parametrize("dims", [(1,), (1, 1, 1), (4, 1), (-1, 1)])
def test_received_dims_that_lie(dims):
    layout = PagedCache([torch.zeros(4, 2, 16, 16, 8) for _ in range(2)], token_dim=2).layout
    fields = {**msgspec.structs.asdict(layout), "token_dims": dims}
    with pytest.raises(LayoutError, match="name one of each"):
        Layout(**fields)
    assert Layout(**{**fields, "token_dims": (1, 1)}) == layout
