"""What becomes of the slots that a fetch was given: only what is in them is published, under its own tokens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.errors import SlotError
from kvmarket.ways import cpu
from tests.model_engine import BLOCK, FACTS, ModelEngine, matched, prompt, slot_bytes_of

STAGING = 8 * 2 * 2 * BLOCK * 24 * 2


@pytest.fixture
def pair(market_address):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address, staging_bytes=STAGING)
    yield owner, reader
    owner.close()
    reader.close()


@pytest.fixture
def gate(monkeypatch):
    """Copies wait until it is set."""
    let_on, real = threading.Event(), cpu.copy_blocks

    def copy(*arguments, **options):
        assert let_on.wait(20)
        real(*arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    yield let_on
    let_on.set()


def short(owner, reader, seed: int, valid: int = 2):
    """A fetch of four blocks that brings the first ones: the owner retires another after the match."""
    tokens = prompt(16, seed)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    owner.market.retire([valid])
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    assert moved.wait() == valid
    return tokens


# ---- publishing what a fetch did not bring


@pytest.mark.parametrize("staged", [False, True])
def test_what_a_fetch_did_not_bring_is_not_published(pair, market_address, staged):
    owner, reader = pair
    tokens = short(owner, reader, 400 + staged)
    with pytest.raises(SlotError, match=r"block id 6 holds no block.*prefill it"):
        reader.market.publish(tokens, [4, 5, 6, 7], staged=staged)
    third = ModelEngine(market_address)
    assert third.take(tokens, [0, 1, 2, 3]) <= 2
    assert reader.market.publish(tokens[: 2 * BLOCK], [4, 5], staged=staged) == 2, "what came may be"
    third.close()


@pytest.mark.parametrize("how", ["torch", "numpy", "inference mode", "one by one"])
def test_what_was_computed_into_the_slots_that_were_left_is_published(pair, market_address, how):
    """Nobody retires these slots again: the fetch did."""
    owner, reader = pair
    tokens = short(owner, reader, 402)
    for block in (2, 3):
        if how == "numpy":
            for layer, part in zip(reader.layers, slot_bytes_of(tokens[: (block + 1) * BLOCK]), strict=True):
                layer.numpy()[4 + block] = part
        elif how == "inference mode":
            with torch.inference_mode():
                reader.write(4 + block, tokens[: (block + 1) * BLOCK])
        else:
            reader.write(4 + block, tokens[: (block + 1) * BLOCK])
        if how == "one by one":
            assert reader.market.publish(tokens[: (block + 1) * BLOCK], list(range(4, 5 + block))) == block + 1
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4
    third = ModelEngine(market_address)
    matched(third, tokens)
    assert third.take(tokens, [0, 1, 2, 3]) == 4
    third.close()


def test_the_same_bytes_as_were_there_may_be_computed(pair):
    """The owner retired the block and its bytes are right all the same; computing gives the very same ones."""
    owner, reader = pair
    tokens = short(owner, reader, 403)
    for block in range(4):
        reader.write(4 + block, tokens[: (block + 1) * BLOCK])
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4


def test_a_fetch_that_could_not_be_launched_brought_nothing(pair, monkeypatch):
    owner, reader = pair
    tokens = prompt(16, 404)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)

    def fail(_copies):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(reader.market._data.mover, "start", fail)
        assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 0
    assert counters.snapshot()["fetch_failed{the copy could not be launched: RuntimeError}"]
    with pytest.raises(SlotError, match="block id 4 holds no block"):
        reader.market.publish(tokens, [4, 5, 6, 7])
    assert reader.take(tokens, [4, 5, 6, 7]) == 4, "another fetch brings it"
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4


def test_a_publication_that_waits_for_the_gpu_leaves_out_what_holds_nothing(pair, monkeypatch):
    """On a GPU what is in a slot is known when the work before the call has completed: played by hand."""
    owner, reader = pair
    waiting = []
    monkeypatch.setattr(reader.market, "_when_complete", waiting.append)
    tokens = short(owner, reader, 405)
    monkeypatch.setattr(reader.market.cache, "device", torch.device("meta"))
    before = counters.snapshot()
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4
    monkeypatch.undo()
    waiting.pop()()
    lost = {key: n - before.get(key, 0) for key, n in counters.snapshot().items() if "did not bring its block" in key}
    assert list(lost.values()) == [2]
    assert reader.market._control.pool.ledger.slots().tolist() == [4, 5]


def test_a_fetch_looked_at_late_does_not_touch_what_its_owner_wrote_since(pair):
    owner, reader = pair
    tokens = prompt(16, 406)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    owner.market.retire([0])
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    reader.publish(tokens, [4, 5, 6, 7])  # retires, which looks what has landed, and writes
    assert moved.wait() == 0
    assert all(reader.holds(4 + block, tokens[: (block + 1) * BLOCK]) for block in range(4))


def test_leaving_the_market_settles_fetches_that_nobody_looked_at(pair):
    owner, reader = pair
    tokens = prompt(16, 407)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    owner.market.retire([2])
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    reader.close()
    reader.write(6, tokens)  # his again
    assert moved.wait() == 2
    assert reader.holds(6, tokens)


def test_blocks_are_not_published_under_other_tokens_than_they_were_fetched_for(pair):
    owner, reader = pair
    tokens = prompt(16, 408)
    owner.publish(tokens, [0, 1, 2, 3])
    matched(reader, tokens)
    assert reader.take(tokens, [4, 5, 6, 7]) == 4
    with pytest.raises(SlotError, match=r"other tokens.*retire\(\[4\]\)"):
        reader.market.publish(prompt(16, 409), [4, 5, 6, 7])
    with pytest.raises(SlotError, match=r"other tokens.*retire\(\[5\]\)"):
        reader.market.publish(tokens, [5, 4, 6, 7])
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4
    reader.publish(prompt(16, 409), [4, 5, 6, 7])
    assert reader.take(prompt(16, 409), [8, 9, 10, 11]) == 4


def test_the_tokens_of_a_match_may_be_changed_by_its_caller(pair):
    owner, reader = pair
    tokens = np.array(prompt(16, 410), np.int32)
    owner.publish(tokens.tolist(), [0, 1, 2, 3])
    matched(reader, tokens.tolist())
    given = tokens.copy()
    hit = reader.market.match(given)
    given[:] = 0
    assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 4
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4


# ---- two fetches into one slot, and retiring one that is being fetched


def test_of_two_fetches_into_one_slot_the_later_one_counts(pair, gate):
    owner, reader = pair
    first, second = prompt(16, 411), prompt(16, 412)
    owner.publish(first, [0, 1, 2, 3])
    owner.publish(second, [4, 5, 6, 7])
    hits = [matched(reader, first), matched(reader, second)]
    one = reader.market.fetch(hits[0], [8, 9, 10, 11])
    two = reader.market.fetch(hits[1], [10, 11, 12, 13])
    gate.set()
    assert (one.wait(), two.wait()) == (2, 4)
    assert one.valid.tolist() == [True, True, False, False]
    assert all(reader.holds(10 + block, second[: (block + 1) * BLOCK]) for block in range(4))
    with pytest.raises(SlotError, match="block id 10 holds a block that was fetched for other tokens"):
        reader.market.publish(first, [8, 9, 10, 11])


def test_a_fetch_that_was_valid_is_not_any_more_when_its_slot_has_gone_to_another(pair):
    owner, reader = pair
    first, second = prompt(16, 413), prompt(16, 414)
    owner.publish(first, [0, 1, 2, 3])
    owner.publish(second, [4, 5, 6, 7])
    hits = [matched(reader, first), matched(reader, second)]
    one = reader.market.fetch(hits[0], [8, 9, 10, 11])
    assert one.wait() == 4
    assert reader.market.fetch(hits[1], [11]).wait() == 1
    assert one.wait() == 3
    reader.market.retire([8])
    assert one.wait() == 0


def test_threads_that_fetch_into_the_same_slots_agree_whose_bytes_are_there(pair):
    owner, reader = pair
    prompts = [prompt(16, 415 + number) for number in range(4)]
    for number, tokens in enumerate(prompts):
        owner.publish(tokens, list(range(4 * number, 4 * number + 4)))
    hits = [matched(reader, tokens) for tokens in prompts]
    for _ in range(30):
        with ThreadPoolExecutor(4) as threads:
            moved = list(threads.map(lambda hit: reader.market.fetch(hit, [20, 21, 22, 23]), hits))
        counts = [each.wait() for each in moved]
        assert sorted(counts) == [0, 0, 0, 4]
        tokens = prompts[counts.index(4)]
        assert all(reader.holds(20 + block, tokens[: (block + 1) * BLOCK]) for block in range(4))


def test_a_slot_retired_while_it_is_fetched_is_not_valid(pair, gate):
    owner, reader = pair
    tokens = prompt(16, 419)
    owner.publish(tokens, [0, 1, 2, 3])
    moved = reader.market.fetch(matched(reader, tokens), [4, 5, 6, 7])
    assert moved.valid.tolist() == [], "nothing is known yet"
    reader.market.retire([6])
    gate.set()
    assert moved.wait() == 2
    with pytest.raises(SlotError, match="block id 6 may not hold what was written to it"):
        reader.market.publish(tokens, [4, 5, 6, 7])
    assert reader.publish(tokens, [4, 5, 6, 7]) == 4


def test_markets_over_one_cache_do_not_fetch_into_one_slot_at_once(pair, gate, market_address):
    owner, reader = pair
    tokens = prompt(16, 420)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    fingerprint = kvmarket.Fingerprint.of(**FACTS)
    with kvmarket.connect(reader.cache, fingerprint, address=market_address) as other:
        moved = reader.market.fetch(hit, [4, 5, 6, 7])
        with pytest.raises(SlotError, match="block id 7 is still being fetched by another market"):
            other.fetch(hit, [7])
        with pytest.raises(SlotError, match="block id 7 is still being fetched"):
            other.publish(tokens[:BLOCK], [7])
        gate.set()
        assert moved.wait() == 4
        assert other.fetch(hit, [7]).wait() == 1
        assert moved.wait() == 3
