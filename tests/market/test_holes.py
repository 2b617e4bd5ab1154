"""Each hole that the correctness argument could have, and the test that would fall into it."""

from __future__ import annotations

import multiprocessing
import threading
from operator import attrgetter

import numpy as np
import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.errors import SlotError
from kvmarket.ways import cpu
from tests.model_engine import BLOCK, FACTS, ModelEngine, matched, prompt, until


@pytest.fixture
def pair(market_address):
    owner = ModelEngine(market_address, staging_bytes=16 * 2 * 2 * BLOCK * 24 * 2)
    reader = ModelEngine(market_address)
    yield owner, reader
    owner.close()
    reader.close()


def test_a_stale_offer_of_a_slot_that_was_reused_and_offered_again(pair):
    """`unchanged since before the copy` would pass here: the generation is stable, but it is not the offer's."""
    owner, reader = pair
    old, new = prompt(16, 1), prompt(16, 2)
    owner.publish(old, [0, 1, 2, 3])
    hit = matched(reader, old)
    owner.publish(new, [0, 1, 2, 3])
    matched(reader, new)
    assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 0
    assert reader.take(new, [4, 5, 6, 7]) == 4


def test_a_publish_whose_slot_is_reused_before_the_offer_goes_out(pair):
    owner, reader = pair
    tokens, control = prompt(16, 3), owner.market._control
    captured = control.generations([0, 1, 2, 3])
    owner.market.retire([2])
    assert control.offer(tokens, [0, 1, 2, 3], captured) == 2, "only what lies before the reused slot"
    assert matched(reader, tokens[:8]).blocks == 2
    assert reader.market.match(tokens).blocks == 2


def test_an_offer_never_takes_the_generation_of_the_moment_it_goes_out(pair, monkeypatch):
    """The same through `publish`, the GPU's completion played by hand."""
    owner, reader = pair
    waiting = []
    monkeypatch.setattr(owner.market, "_when_complete", waiting.append)
    tokens = prompt(16, 4)
    owner.publish(tokens, [0, 1, 2, 3])
    assert reader.market.match(tokens).blocks == 0, "not before the work that writes the blocks has completed"
    owner.market.retire([0, 1, 2, 3])
    for slot in range(4):
        owner.write(slot, [slot])
    waiting.pop()()
    assert reader.market.match(tokens).blocks == 0


def test_a_slot_retired_while_it_was_being_packed(pair, monkeypatch):
    """A pack is a reader too."""
    owner, reader = pair
    waiting = []
    monkeypatch.setattr(owner.market, "_when_complete", waiting.append)
    tokens = prompt(16, 5)
    owner.publish(tokens, [0, 1, 2, 3], staged=True)
    owner.market.retire([1])
    waiting.pop()()
    matched(reader, tokens[:BLOCK])
    assert reader.market.match(tokens).blocks == 1, "only what lies before the retired slot"


def test_a_staging_slot_taken_again_while_it_was_being_packed(pair, monkeypatch):
    owner, reader = pair
    waiting = []
    monkeypatch.setattr(owner.market, "_when_complete", waiting.append)
    first, second = prompt(16, 6), prompt(64, 7)
    owner.publish(first, [0, 1, 2, 3], staged=True)
    owner.publish(second, list(range(4, 20)), staged=True)
    for commit in waiting:
        commit()
    matched(reader, second)
    assert reader.market.match(first).blocks == 0
    assert reader.take(second, list(range(16))) == 16


def test_destinations_of_a_fetch_that_were_offered_before(pair, market_address):
    """A third engine with an old hit on the destinations must not take the new bytes, not even in mid-copy."""
    owner, reader = pair
    third = ModelEngine(market_address)
    mine, theirs = prompt(16, 8), prompt(16, 9)
    reader.publish(mine, [0, 1, 2, 3])
    hit = matched(third, mine)
    owner.publish(theirs, [0, 1, 2, 3])
    assert matched(reader, theirs).blocks == 4
    assert reader.take(theirs, [3, 2, 1, 0]) == 4
    assert third.market.fetch(hit, [0, 1, 2, 3]).wait() == 0
    assert third.market.match(mine).blocks == 0
    assert [(run.pool, len(run)) for run in third.market.match(theirs).runs] == [(owner.market._control.pool.id, 4)], (
        "a fetch offers nothing"
    )
    third.close()


def test_destinations_are_retired_before_the_copy_starts(pair, monkeypatch):
    owner, reader = pair
    mine, theirs = prompt(16, 10), prompt(16, 11)
    reader.publish(mine, [0, 1, 2, 3])
    before = reader.market._control.generations([0, 1, 2, 3]).tolist()
    owner.publish(theirs, [0, 1, 2, 3])
    hit = matched(reader, theirs)
    seen = []

    def copy(*arguments, **options):
        seen.extend(reader.market._control.generations([0, 1, 2, 3]).tolist())
        real(*arguments, **options)

    real = cpu.copy_blocks
    monkeypatch.setattr(cpu, "copy_blocks", copy)
    assert reader.market.fetch(hit, [0, 1, 2, 3]).wait() == 4
    assert all(after > start for after, start in zip(seen, before, strict=True))


def test_a_generation_raised_in_mid_copy(pair, monkeypatch):
    owner, reader = pair
    tokens = prompt(16, 12)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)

    def copy(*arguments, **options):
        real(*arguments, **options)
        owner.market.retire([2])

    real = cpu.copy_blocks
    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = reader.market.fetch(hit, [0, 1, 2, 3])
    assert moved.wait() == 2
    assert moved.valid.tolist() == [True, True, False, True]


def test_a_copy_that_fails_is_a_fetch_of_nothing(pair, monkeypatch, caplog):
    owner, reader = pair
    tokens = prompt(16, 13)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)

    def copy(*_arguments, **_options):
        raise RuntimeError(f"the link is down, {next(bytes_free)} bytes free")

    bytes_free = iter((17, 18))
    monkeypatch.setattr(cpu, "copy_blocks", copy)
    monkeypatch.setattr(counters, "_counts", {})  # other tests had copies that failed
    for _ in range(2):
        assert reader.market.fetch(hit, [0, 1, 2, 3]).wait() == 0
    failed = {key: times for key, times in counters.snapshot().items() if "the copy failed" in key}
    assert failed == {"fetch_failed{the copy failed: RuntimeError}": 2}, "what differs every time makes no counter"
    assert "17 bytes free" in caplog.text and "18 bytes free" not in caplog.text


def test_owner_side_trouble_kills_all_offers_at_once(pair):
    """Even for a reader that holds a hit already, and even if no message ever arrives."""
    owner, reader = pair
    tokens = prompt(16, 14)
    owner.publish(tokens, [0, 1, 2, 3])
    owner.publish(prompt(16, 15), [4, 5, 6, 7], staged=True)
    hits = [matched(reader, tokens), matched(reader, prompt(16, 15))]
    owner.market._control._client._connection.feed.tell = lambda *_changes: False
    owner.market._control.fail_closed("an exception before the generation was raised")
    assert [reader.market.fetch(hit, [0, 1, 2, 3]).wait() for hit in hits] == [0, 0]


def test_after_failing_closed_an_owner_may_offer_again(pair):
    owner, reader = pair
    tokens = prompt(16, 16)
    owner.publish(tokens, [0, 1, 2, 3])
    owner.market._control.fail_closed("a test")
    until(lambda: reader.market.match(tokens).blocks == 0)
    owner.publish(tokens, [0, 1, 2, 3])
    until(lambda: reader.take(tokens, [0, 1, 2, 3]) == 4)


def test_publishing_over_a_slot_without_retiring_it_is_refused(pair):
    owner, _ = pair
    owner.publish(prompt(16, 17), [0, 1, 2, 3])
    with pytest.raises(SlotError, match=r"retire\(\[2\]\)"):
        owner.market.publish(prompt(16, 18), [2, 5, 6, 7])


def test_publishing_the_same_again_offers_only_what_is_new(pair):
    owner, reader = pair
    tokens = prompt(32, 19)
    for blocks in (2, 5, 8, 8):
        owner.market.retire(list(range(blocks))) if blocks == 2 else None
        for slot in range(blocks):
            owner.write(slot, tokens[: (slot + 1) * BLOCK])
        assert owner.market.publish(tokens[: blocks * BLOCK], list(range(blocks))) == blocks
    assert matched(reader, tokens).blocks == 8
    assert reader.take(tokens, list(range(8))) == 8


def test_a_fetch_onto_its_own_source(pair):
    """A slot that is source and destination at once is retired first, so the block is not valid.

    The ones before it are.
    """
    owner, _ = pair
    tokens = prompt(16, 20)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(owner, tokens)
    assert owner.market.fetch(hit, [8, 9, 1, 10]).wait() == 1


@pytest.mark.gpu
def test_a_slot_reused_while_the_gpu_still_computes(market_address):
    """The publish waits for the GPU, the retirement does not: nothing may ever be offered."""
    owner, reader = ModelEngine(market_address, device="cuda"), ModelEngine(market_address, device="cuda")
    tokens = prompt(16, 21)
    torch.cuda._sleep(2_000_000_000)
    owner.market.publish(tokens, [0, 1, 2, 3])
    assert reader.market.match(tokens).blocks == 0
    owner.market.retire([0, 1, 2, 3])
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)
    torch.cuda.synchronize()
    assert reader.market.match(tokens).blocks == 0
    owner.close()
    reader.close()


def test_markets_over_one_cache_share_its_generations(pair):
    """Two tenants of one engine: what one market retires is dead in the other one too."""
    owner, reader = pair
    cache, fingerprint = owner.cache, kvmarket.Fingerprint.of(**FACTS)
    with kvmarket.connect(cache, fingerprint, "b", address=owner.market._control._client.home.address.socket) as other:
        tokens = prompt(16, 22)
        owner.publish(tokens, [0, 1, 2, 3])
        hit = matched(reader, tokens)
        other.retire([1])
        assert reader.market.fetch(hit, [0, 1, 2, 3]).wait() == 1
        kept = prompt(16, 23)
        owner.publish(kept, [8, 9, 10, 11])
        matched(reader, kept)
    assert reader.take(kept, [4, 5, 6, 7]) == 4, "closing one market leaves the other's offers alone"


def test_publishing_a_slot_that_is_still_being_fetched_is_refused(pair, monkeypatch):
    owner, reader = pair
    tokens, may_go = prompt(16, 24), threading.Event()
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)

    def copy(*arguments, **options):
        may_go.wait()
        real(*arguments, **options)

    real = cpu.copy_blocks
    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    with pytest.raises(SlotError, match=r"block id 4 .* wait\(\)"):
        reader.market.publish(tokens, [4, 5, 6, 7])
    may_go.set()
    assert moved.wait() == 4
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4


@pytest.mark.parametrize("part", ["market", "market._control"])
def test_a_fork_has_no_part_in_its_parents_market(pair, part):
    """The child's exit handlers must not raise the parent's generations."""
    owner, reader = pair
    tokens = prompt(16, 25)
    owner.publish(tokens, [0, 1, 2, 3])
    matched(reader, tokens)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=attrgetter(f"{part}.close")(owner))
    child.start()
    child.join()
    assert reader.take(tokens, [0, 1, 2, 3]) == 4


def test_an_epoch_raised_while_an_offer_is_made_kills_it(pair, monkeypatch):
    owner, reader = pair
    tokens, control = prompt(16, 45), owner.market._control
    real, client, hits = control._client.offer, reader.market._control._client, []

    def offer(offering):
        control.pool.generations.raise_epoch()  # between what the offer was checked against and its way out
        real(offering)
        until(lambda: client.match(np.array(tokens, np.int32), "", 0, ())[0])  # before the owner's thread takes it down
        hits.append(reader.market.match(tokens).blocks)

    monkeypatch.setattr(control._client, "offer", offer)
    owner.publish(tokens, [0, 1, 2, 3])
    until(lambda: hits)
    assert hits == [0]
