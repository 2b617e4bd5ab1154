"""What callers get wrong without noticing: it raises at once and says what to do, or it works."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kvmarket
from kvmarket.errors import LayoutError, MisuseError, SlotError, TokenError
from tests.model_engine import BLOCK, FACTS, ModelEngine, matched, prompt


@pytest.fixture
def pair(market_address):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address)
    yield owner, reader
    owner.close()
    reader.close()


@pytest.mark.parametrize("how", ["data", "set_"])
def test_a_tensor_whose_memory_was_replaced(market_address, how):
    layers = [torch.zeros(16, 2, BLOCK, 8) for _ in range(3)]
    cache, fingerprint = kvmarket.PagedCache(layers, block_size=BLOCK), kvmarket.Fingerprint.of(model=how)
    with kvmarket.connect(cache, fingerprint, address=market_address) as market:
        market.publish([1] * BLOCK, [0])
        hit = market.match([1] * BLOCK)
        before = market._control.generations([3]).tolist()
        new = torch.full((16, 2, BLOCK, 8), 9.0)
        if how == "data":
            layers[1].data = new
        else:
            layers[1].set_(new)
        for call in (lambda: market.publish([2] * BLOCK, [3]), lambda: market.fetch(hit, [3])):
            with pytest.raises(LayoutError, match=r"tensor 1 .*connect with a PagedCache"):
                call()
        assert market._control.generations([3]).tolist() == before
        market.retire([0])  # nothing keeps an owner from that
        assert market.match([1] * BLOCK).blocks == 0
    kvmarket.connect(cache, fingerprint, address=market_address).close()


def test_a_tensor_that_was_cut_otherwise_before_its_cache_is_shared(market_address):
    layers = [torch.zeros(16, 2, BLOCK, 8) for _ in range(3)]
    cache = kvmarket.PagedCache(layers, block_size=BLOCK)
    layers[2].set_(torch.zeros(17, 2, BLOCK, 8)[1:])
    with pytest.raises(LayoutError, match="tensor 2 was changed since: make a PagedCache of the tensors as they are"):
        kvmarket.connect(cache, kvmarket.Fingerprint.of(model="cut"), address=market_address)


@pytest.mark.parametrize("count", [5, 6, 30])
def test_surplus_block_ids(pair, count):
    """One more than whole blocks is that of a last block which is not full yet."""
    owner, _ = pair
    tokens = prompt(18, 421)
    owner.market.retire(list(range(count)))
    if count == 5:
        assert owner.market.publish(tokens, list(range(5))) == 4
        with pytest.raises(SlotError, match="out of range"):
            owner.market.publish(tokens, [0, 1, 2, 3, 99])
        with pytest.raises(SlotError, match="given twice"):
            owner.market.publish(tokens, [0, 1, 2, 3, 3])
        with pytest.raises(SlotError, match="5 block ids for 16 tokens"):
            owner.market.publish(tokens[:16], list(range(5)))
    else:
        with pytest.raises(SlotError, match=f"{count} block ids for 18 tokens; give one per {BLOCK} tokens"):
            owner.market.publish(tokens, list(range(count)))


def test_a_first_block_that_is_no_number(pair):
    owner, reader = pair
    tokens = prompt(16, 422)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    before = reader.market._control.generations([4]).tolist()
    with pytest.raises(SlotError, match="first is a float"):
        reader.market.fetch(hit, [4], first=1.0)
    assert reader.market._control.generations([4]).tolist() == before
    assert reader.market.fetch(hit, [4], first=np.int64(1)).wait() == 1


def test_prompts_beyond_what_can_be_sent(pair, monkeypatch):
    monkeypatch.setattr("kvmarket.bounds.MAX_TOKENS", 12)
    owner, _ = pair
    for call in (lambda: owner.market.publish([1] * 16, [0, 1, 2, 3]), lambda: owner.market.match([1] * 16)):
        with pytest.raises(TokenError, match="16 tokens, of which at most 12"):
            call()
    assert owner.market.match([1] * 12).blocks == 0


@pytest.mark.parametrize(
    "change", [{"tenant": "b"}, {"facts": {**FACTS, "revision": 2}}], ids=["tenant", "fingerprint"]
)
def test_a_hit_of_another_market(pair, market_address, change):
    owner, _ = pair
    tokens = prompt(16, 423)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(owner, tokens)
    other = ModelEngine(market_address, **change)
    before = other.market._control.generations([4]).tolist()
    with pytest.raises(MisuseError, match="another fingerprint or tenant"):
        other.market.fetch(hit, [4, 5, 6, 7])
    assert other.market._control.generations([4]).tolist() == before
    assert other.market.fetch(other.market.match(tokens), []).wait() == 0
    other.close()
    same = ModelEngine(market_address)
    assert same.market.fetch(hit, [4, 5, 6, 7]).wait() == 4, "another engine of the same ones may"
    same.close()


def test_a_hit_of_an_engine_with_fewer_ranks(pair):
    owner, reader = pair
    owner.publish(tokens := prompt(16, 425), [0, 1, 2, 3])
    hit = matched(reader, tokens)
    reader.market._data._rank = 1
    with pytest.raises(SlotError, match="another geometry"):
        reader.market.fetch(hit, [4, 5, 6, 7])
    reader.market._data._rank = 0
    assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 4


def test_a_hit_of_another_geometry(pair, own_address):
    """Of the same fingerprint, in a market of its own, where nobody compared the two."""
    _, reader = pair
    layers = [torch.zeros(8, 2, BLOCK, 26, dtype=torch.int16) for _ in range(2)]
    cache, tokens = kvmarket.PagedCache(layers, block_size=BLOCK), prompt(8, 424)
    with kvmarket.connect(cache, kvmarket.Fingerprint.of(**FACTS), address=own_address) as elsewhere:
        elsewhere.publish(tokens, [0, 1])
        hit = elsewhere.match(tokens)
        assert hit.blocks == 2
        before = reader.market._control.generations([4, 5]).tolist()
        with pytest.raises(SlotError, match="another geometry"):
            reader.market.fetch(hit, [4, 5])
        assert reader.market._control.generations([4, 5]).tolist() == before
