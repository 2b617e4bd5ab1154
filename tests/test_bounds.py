"""What the protocol cannot carry is refused where it comes in, and what is only long is sent all the same."""

from __future__ import annotations

import msgspec
import pytest
import torch

import kvmarket
from kvmarket.bounds import check_tokens, shortened
from kvmarket.errors import LayoutError, MisuseError, TokenError
from kvmarket.layout.layout import Layout, Part
from kvmarket.market.offer import Stage, check_stages
from kvmarket.registry.protocol.messages import MAX_BLOCK_SIZE, MAX_SLOTS, MAX_TOKENS, Name
from kvmarket.registry.protocol.status import MAX_NAME
from kvmarket.transport import ShmMemory
from tests.model_engine import FACTS, ModelEngine, matched, prompt

FINGERPRINT = kvmarket.Fingerprint.of(**FACTS)


def cache(block_size: int = 4, slots: int = 8) -> kvmarket.PagedCache:
    return kvmarket.PagedCache([torch.zeros(slots, 8)], block_size=block_size)


@pytest.mark.parametrize(
    ("tenant", "error"), [("x" * (MAX_NAME + 1), "hash"), ("user-\ud83d", "text"), (b"x", "bytes")]
)
def test_tenants_that_cannot_be_sent(market_address, tenant, error):
    made = cache()
    with pytest.raises(MisuseError, match=error):
        kvmarket.connect(made, FINGERPRINT, tenant=tenant, address=market_address)
    assert not made.storages()[0].is_shared(), "refused before anything was done"


def test_the_longest_tenant_is_found_by_others_of_it(market_address):
    tenant = "\U0001f600" * MAX_NAME
    one, other = (ModelEngine(market_address, tenant=tenant) for _ in range(2))
    tokens = prompt(8, 600)
    one.publish(tokens, [0, 1])
    matched(other, tokens)
    assert other.take(tokens, [2, 3]) == 2
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("staging_bytes", -1), ("staging_bytes", 1e6), ("staging_bytes", True), ("programs", 0), ("programs", 2.0)],
)
def test_options_that_are_no_counts(market_address, name, value):
    made = cache()
    with pytest.raises(MisuseError, match=f"{name}={value}; give a whole number"):
        kvmarket.connect(made, FINGERPRINT, address=market_address, **{name: value})
    assert not made.storages()[0].is_shared()


def test_a_staging_pool_of_too_many_slots(market_address, monkeypatch):
    monkeypatch.setattr("kvmarket.bounds.MAX_SLOTS", 8)
    made = cache()
    with pytest.raises(LayoutError, match="9 slots"):
        kvmarket.connect(made, FINGERPRINT, address=market_address, staging_bytes=9 * made.slot_bytes)
    kvmarket.connect(made, FINGERPRINT, address=market_address, staging_bytes=8 * made.slot_bytes).close()


def test_prompts_that_are_too_long():
    check_tokens(MAX_TOKENS)
    with pytest.raises(TokenError, match=str(MAX_TOKENS)):
        check_tokens(MAX_TOKENS + 1)


@pytest.mark.parametrize(
    ("slots", "block_size", "error"),
    [(MAX_SLOTS + 1, 1, "make larger blocks"), (8, MAX_BLOCK_SIZE + 1, f"at most {MAX_BLOCK_SIZE}")],
)
def test_caches_that_are_too_large(market_address, slots, block_size, error):
    made = kvmarket.PagedCache([torch.zeros(slots, 2, dtype=torch.uint8)], block_size=block_size)
    with pytest.raises(LayoutError, match=error):
        kvmarket.connect(made, FINGERPRINT, address=market_address)
    assert not made.storages()[0].is_shared()
    with pytest.raises(LayoutError, match=error):
        check_stages([Stage(made.layout, (ShmMemory(()),))])


def test_the_largest_caches_pass():
    parts = (Part(0, 0, 1, (), ()),)
    layout = Layout(MAX_SLOTS, MAX_BLOCK_SIZE, "uint8", 1, ((),), parts, (MAX_SLOTS,), 1, packed=False)
    check_stages([Stage(layout, (ShmMemory(()),))])


def test_what_was_checked_can_be_sent():
    """The bounds are those of the messages."""
    for value in ("x" * MAX_NAME, "\U0001f600" * MAX_NAME):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Name) == value
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode("x" * (MAX_NAME + 1)), type=Name)


def unlike(last: int) -> kvmarket.PagedCache:
    """Layers of which no two in a row are alike."""
    sizes = [(2, 16, 2 + i % 2, 4 + i % 3) for i in range(399)] + [(2, 16, 2, last)]
    return kvmarket.PagedCache([torch.zeros(8, *size) for size in sizes])


def test_geometries_that_are_too_long_to_be_sent_are_told_apart(market_address):
    facts = kvmarket.Fingerprint.of(model="many unlike layers")
    text = unlike(4).layout.geometry()
    assert len(text) > MAX_NAME
    assert len(shortened(text)) <= MAX_NAME and shortened(text) != shortened(unlike(5).layout.geometry())
    assert shortened(text[:MAX_NAME]) == text[:MAX_NAME]
    one, other = (kvmarket.connect(unlike(4), facts, address=market_address) for _ in range(2))
    with pytest.raises(LayoutError, match="fingerprint"):
        kvmarket.connect(unlike(5), facts, address=market_address)
    one.close()
    other.close()
