"""What an engine computed is found at a lender when the engine has overwritten it, or is dead."""

from __future__ import annotations

import time

import pytest
import torch

from kvmarket import counters
from kvmarket.lend import growing
from kvmarket.lend import lending as lending_module
from kvmarket.lend.keeper import Keeper
from kvmarket.lend.lending import Lending
from kvmarket.lend.segment import Segment
from kvmarket.market.member import MarketMember
from kvmarket.registry.trie.node import OFFERS_PER_BLOCK
from tests.lend.lends import BLOCK_BYTES, churn, lending, lent
from tests.market.test_stages import Ranks
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until

CORRUPT = "fetch_corrupt{bytes that arrived do not have the checksum of their offer: look for faulty memory or links}"


def test_what_was_overwritten_is_read_from_the_lender(market_address, two):
    computes, reads = two
    tokens = prompt(6 * BLOCK, 1)
    with lending(market_address, 10) as lender:
        computes.publish(tokens, list(range(6)))
        lender.keeps(6)
        churn(computes)
        until(lambda: reads.take(tokens, list(range(6))) == 6)
        assert computes.take(tokens, list(range(6))) == 6, "also by who computed it"


def test_what_is_there_when_the_lender_comes_is_kept_too(market_address, two):
    computes, reads = two
    prompts = [prompt(2 * BLOCK, 2), *(prompt(BLOCK, 2) + prompt(BLOCK, seed) for seed in range(3, 9))]
    for number, tokens in enumerate(prompts):
        computes.publish(tokens, [0, number + 1])
    with lending(market_address, 20) as lender:
        lender.keeps(8)
        churn(computes)
        until(lambda: all(reads.market.match(tokens).blocks == 2 for tokens in prompts))
        assert [reads.take(tokens, [10, 11]) for tokens in prompts] == [2] * 7


def test_tenants_stay_apart(market_address):
    engines = [ModelEngine(market_address, tenant=name) for name in ("a", "a", "b")]
    tokens = prompt(3 * BLOCK, 20)
    with lending(market_address, 10) as lender:
        engines[0].publish(tokens, [0, 1, 2])
        lender.keeps(3)
        churn(engines[0])
        until(lambda: engines[1].take(tokens, [0, 1, 2]) == 3)
        assert engines[2].market.match(tokens).blocks == 0
    for engine in engines:
        engine.close()


def test_an_engine_that_was_killed_finds_its_prefixes_when_it_comes_again(market_address):
    first, tokens = Peer(market_address), prompt(5 * BLOCK, 30)
    with lending(market_address, 10) as lender:
        first.publish(tokens, list(range(5)))
        lender.keeps(5)
        first.kill()
        again = ModelEngine(market_address)
        until(lambda: again.take(tokens, list(range(5))) == 5)
        again.close()


@pytest.fixture
def used(monkeypatch):
    """What a keeper is told: the number of blocks of each use, and whether they go on with a request."""
    told, use = [], Keeper.used

    def note(keeper, path, after=None):
        told.append((len(path), after is not None))
        return use(keeper, path, after)

    monkeypatch.setattr(Keeper, "used", note)
    return told


def test_a_conversation_that_grows_is_one_request(market_address, two, used, monkeypatch):
    """Its blocks count as used once, unless it goes on after a pause."""
    computes, _ = two
    tokens = prompt(5 * BLOCK, 40)
    with lending(market_address, 10) as lender:
        for blocks in (2, 3):
            computes.market.publish(tokens[: blocks * BLOCK], list(range(blocks)))
            lender.keeps(blocks)
        assert used == [(2, False), (1, True)]
        monkeypatch.setattr(growing, "GROWING_SECONDS", 0.0)
        computes.market.publish(tokens[: 4 * BLOCK], [0, 1, 2, 3])
        lender.keeps(4)
        assert used[2:] == [(4, False)]


def test_whoever_imports_a_prefix_and_offers_it_has_used_it(market_address, two, used):
    computes, reads = two
    tokens = prompt(3 * BLOCK, 50)
    with lending(market_address, 10) as lender:
        computes.publish(tokens, [0, 1, 2])
        lender.keeps(3)
        assert reads.take(tokens, [0, 1, 2]) == 3
        reads.market.publish(tokens, [0, 1, 2])
        until(lambda: used == [(3, False), (3, False)])


def test_a_full_lender_gives_up_what_is_worth_least(market_address, two, used):
    computes, reads = two
    with lending(market_address, 8) as lender:
        for seed in range(60, 80):
            computes.publish(prompt(3 * BLOCK, seed), [0, 1, 2])
            until(lambda seed=seed: len(used) == seed - 59 and lender.at_rest())
            assert len(lender) <= 8
        churn(computes)
        blocks = [matched_blocks(reads, prompt(3 * BLOCK, seed)) for seed in range(60, 80)]
        assert sum(blocks) == len(lender) >= 6
        for seed, count in zip(range(60, 80), blocks, strict=True):
            assert reads.take(prompt(3 * BLOCK, seed), [0, 1, 2]) == count


def matched_blocks(engine: ModelEngine, tokens: list[int]) -> int:
    time.sleep(0.01)  # what was retired is taken down
    return engine.market.match(tokens).blocks


def test_what_is_retired_before_it_is_copied_is_not_offered(market_address, two, monkeypatch):
    """Nor does it stay kept; and when it is computed again it is copied after all."""
    computes, reads = two
    tokens = prompt(4 * BLOCK, 90)
    with lending(market_address, 8) as lender:
        pull = Lending._pull

        def late(self, part):
            computes.market.retire([2])
            pull(self, part)

        monkeypatch.setattr(Lending, "_pull", late)
        computes.publish(tokens, [0, 1, 2, 3])
        lender.keeps(2)
        assert len(lender.lending._keeper) == 2
        monkeypatch.setattr(Lending, "_pull", pull)
        computes.publish(tokens, [0, 1, 2, 3])
        lender.keeps(4)
        churn(computes)
        until(lambda: reads.take(tokens, [0, 1, 2, 3]) == 4)


def test_what_is_retired_while_it_is_copied_is_not_offered(market_address, two, monkeypatch):
    computes, reads = two
    tokens = prompt(4 * BLOCK, 95)
    with lending(market_address, 8) as lender:
        fetch = Segment.fetch

        def late(self, *what):
            fetches = fetch(self, *what)
            computes.market.retire([1])
            return fetches

        monkeypatch.setattr(Segment, "fetch", late)
        computes.publish(tokens, [0, 1, 2, 3])
        lender.keeps(1)
        churn(computes)
        until(lambda: reads.take(tokens, [0, 1, 2, 3]) == 1)
        assert sum(len(segment._free) for segment in lender.lending._segments) == 7, "the other slots are free again"


def test_what_is_retired_while_it_is_copied_is_copied_from_who_still_has_it(market_address, two, monkeypatch):
    computes, reads = two
    tokens = prompt(4 * BLOCK, 96)
    late = ModelEngine(market_address)
    computes.publish(tokens, [0, 1, 2, 3])
    until(lambda: late.market.match(tokens).blocks == 4)
    late.publish(tokens, [0, 1, 2, 3])
    until(lambda: set(reads.market.match(tokens).pools) == {late.market._control.pool.id})
    fetch = Segment.fetch

    def retired(self, hit, *what):
        fetches = fetch(self, hit, *what)
        late.market.retire(range(4))
        return fetches

    monkeypatch.setattr(Segment, "fetch", retired)
    with lending(market_address, 8) as lender:
        lender.keeps(4)
        late.close()
        churn(computes)
        until(lambda: reads.take(tokens, [0, 1, 2, 3]) == 4)


def test_a_block_is_kept_by_one_lender_and_those_behind_it_by_any(market_address, two):
    """The first one is full: the second one keeps what goes on from its blocks, and takes no memory for these."""
    computes, reads = two
    tokens = prompt(12 * BLOCK, 130)
    with lending(market_address, 4) as one:
        computes.publish(tokens[: 4 * BLOCK], [0, 1, 2, 3])
        one.keeps(4)
        until(lambda: lent(reads, tokens))
        with lending(market_address, 8) as other:
            for block in range(4, 12):
                computes.write(block, tokens[: (block + 1) * BLOCK])
            computes.market.publish(tokens, list(range(12)))
            until(lambda: len(other) == 8 and other.at_rest())
            assert len(one) == 4 and len(other.lending._elsewhere) == 4
            churn(computes)
            until(lambda: reads.market.match(tokens).blocks == 12)
            assert reads.take(tokens, list(range(12))) == 12


def test_a_block_whose_offer_was_crowded_out_is_offered_again(market_address, two, monkeypatch):
    """A block has at most 64 offers: of a system prompt that all have, the lender's is the oldest."""
    monkeypatch.setattr(lending_module, "AGAIN_SECONDS", 0.0)
    _, reads = two
    many = ModelEngine(market_address, slots=OFFERS_PER_BLOCK + 4)
    tokens = prompt(3 * BLOCK, 230)
    with lending(market_address, 8) as lender:
        many.publish(tokens, [0, 1, 2])
        lender.keeps(3)
        for slot in range(3, OFFERS_PER_BLOCK + 4):
            many.write(slot, tokens[:BLOCK])
            many.market.publish(tokens[:BLOCK], [slot])
        until(lambda: lender.lending._offered_again and lender.at_rest())
        churn(many)
        until(lambda: reads.take(tokens, [0, 1, 2]) == 3)
    many.close()


def test_every_rank_of_every_stage_is_copied(market_address):
    computes, reads = (Ranks(market_address, "lent ranks", (2, 1), 2, seed) for seed in (1, 2))
    tokens = prompt(3 * BLOCK, 140)
    with lending(market_address, 1 << 16) as lender:
        computes.control.offer(tokens, [5, 0, 3], computes.control.generations([5, 0, 3]))
        lender.keeps(3)
        computes.control.retire([5, 0, 3])
        until(lambda: reads.control.match(tokens).blocks == 3)
        hit = reads.control.match(tokens)
        for half, theirs, ours in zip(reads.halves, computes.tensors, reads.tensors, strict=True):
            assert half.fetch(hit, [1, 2, 7]).wait() == 3
            for source, destination in zip(theirs, ours, strict=True):
                assert torch.equal(destination[[1, 2, 7]], source[[5, 0, 3]])
    for engine in (computes, reads):
        engine.close()


def test_checksums_are_handed_on(market_address):
    """What an engine packed with checksums is checked by who reads it from the lender."""
    computes, reads = ModelEngine(market_address, staging_bytes=1 << 20), ModelEngine(market_address)
    tokens = prompt(3 * BLOCK, 150)
    with lending(market_address, 8) as lender:
        computes.publish(tokens, [0, 1, 2], staged=True)
        lender.keeps(3)
        computes.close()
        hit = matched(reads, tokens)
        assert hit.runs[0].checksums.all()
        segment = lender.lending._segments[0]
        segment._halves[0].slots.segments[0][: BLOCK_BYTES // 2] ^= 1  # of slot 0, where the first block is
        assert reads.market.fetch(hit, [0, 1, 2]).wait() == 0
        assert counters.snapshot()[CORRUPT] >= 1
    reads.close()


def test_few_prefixes_wait_for_another_lender_at_a_time(market_address, two, monkeypatch):
    """Each holds its tokens; further offers wait, as a few bytes each, until these have been looked at again."""
    monkeypatch.setattr(lending_module, "MOST_LATER", 2)
    monkeypatch.setattr(lending_module, "LATER_SECONDS", 2.0)
    monkeypatch.setattr(MarketMember, "is_mine", lambda self, key, *, far=False: False)
    computes, _ = two
    with lending(market_address, 32) as lender:
        for seed in range(5):
            computes.publish(prompt(2 * BLOCK, 260 + seed), [2 * seed, 2 * seed + 1])
        until(lambda: (len(lender.lending._later), len(lender.lending.tips._tips)) == (2, 3))
        assert not len(lender)
        lender.keeps(10)
