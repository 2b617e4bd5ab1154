"""A lender lends more or less when another process asks: what it gives back is dead before the answer comes."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from kvmarket.errors import MisuseError
from kvmarket.lend import budget as budget_module
from kvmarket.lend import lender as lender_module
from kvmarket.lend.resize import ask
from kvmarket.market.member import MarketMember
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.lender_sockets import socket_of
from tests.lend.lends import BLOCK_BYTES, churn, engines_of, fill, fill_segments, lending, lent, segments
from tests.model_engine import BLOCK, matched, prompt, until


@contextmanager
def listening(address, *arguments, **options):
    """A lender that listens; its `ask` asks for a size in blocks and returns the sizes before and since."""
    with lending(address, *arguments, **options) as lender:
        lender.listen()
        until(socket_of(Address(address), Process.current()).path.exists)

        def resize(blocks):
            resized = ask(address, host_bytes=blocks * BLOCK_BYTES, seconds=20)
            assert not resized.after.paused
            return [lent.memories[0].nbytes // BLOCK_BYTES for lent in resized]

        lender.ask = resize
        yield lender


def test_what_is_given_back_is_dead_before_the_answer_and_leaves_its_readers(market_address, two):
    computes, reads = two
    with listening(market_address, 8, segment=4) as lender:
        prompts = fill_segments(lender, computes, 300, 301)
        hits = [matched(reads, tokens) for tokens in prompts]
        assert [reads.market.fetch(hit, [0, 1, 2, 3]).wait() for hit in hits] == [4, 4], "both are mapped"
        taken = lender.lending._segments[1].pool.id
        assert lender.ask(4) == [8, 4]
        assert [reads.market.fetch(hit, [0, 1, 2, 3]).wait() for hit in hits] == [4, 0]
        assert lender.budget.lent == 4 * BLOCK_BYTES
        until(lambda: taken not in reads.market._data.mappings._mapped)
        until(lambda: reads.market.match(prompts[1]).blocks == 0)
        assert len(lender) == 4 and reads.take(prompts[0], [0, 1, 2, 3]) == 4


def test_more_memory_is_taken_when_it_is_needed(market_address, two):
    with listening(market_address, 4, segment=4) as lender:
        fill(two[0], 0, 1, 2)
        until(lambda: lender.at_rest() and len(lender) == 4)
        assert lender.ask(12) == [4, 12]
        assert lender.budget.lent == 4 * BLOCK_BYTES
        fill(two[0], 3, 4)
        lender.keeps(12)
        assert segments(lender) == [3]


def test_to_nothing_and_back(market_address, two):
    computes, reads = two
    with listening(market_address, 8, segment=4) as lender:
        fill(computes, 0, 1)
        lender.keeps(8)
        hit = reads.market.match(prompt(4 * BLOCK, 0))
        churn(computes)
        assert lender.ask(0) == [8, 0]
        assert not lender._lendings and lender.budget.lent == 0
        assert reads.market.fetch(hit, [0, 1, 2, 3]).wait() == 0
        for _ in range(3):
            assert not lender.turn() and not lender._lendings, "and it joins nothing"
        assert lender.ask(4) == [0, 4]
        until(lambda: lender._lendings)
        fill(computes, 2)
        lender.keeps(4)
        until(lambda: lent(reads, prompt(4 * BLOCK, 2)))


def test_less_than_a_segment_is_one_smaller_segment(market_address, two):
    with listening(market_address, 8, segment=4) as lender:
        fill(two[0], 0, 1)
        lender.keeps(8)
        assert lender.ask(3) == [8, 3]
        until(lambda: lender._lendings)
        fill(two[0], 2)
        lender.keeps(3)
        assert segments(lender) == [1] and lender.budget.lent == 3 * BLOCK_BYTES
        ask(market_address, host_bytes=BLOCK_BYTES - 1)
        for _ in range(3):
            assert not lender.turn() and not lender._lendings, "it holds no block"
        lender.ask(8)
        until(lambda: lender._lendings)
        fill(two[0], 3, 4)
        lender.keeps(8)


def test_while_it_is_paused_the_new_size_counts_for_later(market_address, two):
    with listening(market_address, 8, segment=4) as lender:
        lender.pause()
        until(lambda: not lender._lendings)
        resized = ask(market_address, host_bytes=4 * BLOCK_BYTES)
        assert resized.after.paused and resized.after.memories[0].nbytes == 4 * BLOCK_BYTES
        assert not lender.turn() and not lender._lendings
        lender.resume()
        until(lambda: lender._lendings)
        fill(two[0], 0, 1)
        until(lambda: lender.at_rest() and len(lender) == 4)


def test_what_must_stay_free_stays_free_whatever_is_asked_for(market_address, two, monkeypatch):
    free = [20 * BLOCK_BYTES]
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: free[0])
    with listening(market_address, 4, segment=4, keep_free=5 * BLOCK_BYTES) as lender:
        fill(two[0], 0)
        lender.keeps(4)
        free[0] = 6 * BLOCK_BYTES
        assert lender.ask(12) == [4, 12]
        fill(two[0], 1)
        until(lambda: lender.at_rest() and len(lender) == 4)
        assert segments(lender) == [1], "another one would leave too little"
        free[0] = 20 * BLOCK_BYTES
        fill(two[0], 2, 3)
        lender.keeps(12)


def test_spaces_give_back_in_turn(own_address):
    one, other = engines_of(own_address, "one", "other")
    with listening(own_address, 24, segment=4) as lender:
        until(lambda: len(lender._lendings) == 2)
        for engine in (one, other):
            fill(engine, 0, 1, 2)
        lender.keeps(24)
        assert segments(lender) == [3, 3]
        assert lender.ask(16) == [24, 16] and segments(lender) == [2, 2]
        assert lender.ask(4) == [16, 4] and segments(lender) == [1]
    for engine in (one, other):
        engine.close()


def test_a_lender_that_has_grown_has_no_more_segments_than_another_one(market_address, two, monkeypatch):
    """Where it has as many as it may, larger ones take the place of those of its former size."""
    for module in (budget_module, lender_module):
        monkeypatch.setattr(module, "MOST_SEGMENTS", 4)
    with listening(market_address, 4, segment=1) as lender:
        fill(two[0], 0)
        lender.keeps(4)
        assert segments(lender) == [4]
        assert lender.ask(16) == [4, 16] and lender.budget.segment_bytes == 4 * BLOCK_BYTES
        for seed in range(1, 7):
            fill(two[0], seed)
            until(lambda known=4 * seed + 4: len(lender.lending._keeper._past) == known and lender.at_rest())
            assert lender.lending.segments <= 4
            assert lender.budget.lent == lender.lending.nbytes <= 16 * BLOCK_BYTES
        assert lender.budget.lent > 12 * BLOCK_BYTES
        assert len(lender) > 8, "and they are used"


def test_room_for_a_larger_segment_is_made_of_several_smaller_ones(own_address, monkeypatch):
    one, other = engines_of(own_address, "one", "other")
    with listening(own_address, 8, segment=2) as lender:
        until(lambda: len(lender._lendings) == 2)
        fill(one, 0, 1)
        until(lambda: sorted(segments(lender)) == [1, 3])
        takes, most = sorted(lender._lendings.values(), key=lambda lending: lending.segments)
        monkeypatch.setattr(budget_module, "MOST_SEGMENTS", 2)
        assert lender.ask(8) == [8, 8] and lender.budget.segment_bytes == 4 * BLOCK_BYTES
        one.close()
        until(lambda: not lender._spaces.engines.get(most.space))
        with lender._turning:
            assert lender._make_room(lender.budget, takes) and most.segments == 1
    other.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give --gb or --host-gb"),
        ({"gpu": 1, "host_bytes": 1}, "GPU 1 without a new size"),
        ({"host_bytes": -1}, "-1 bytes"),
        ({"host_bytes": 1 << 63}, "bytes to lend; give a size"),
        ({"gpu_bytes": 1}, "lends no memory of a GPU, but host memory"),
        ({"gpu_bytes": 1, "gpu": 3, "host_bytes": 1}, "lends no memory of GPU 3, but host memory"),
    ],
)
def test_what_cannot_be_asked_for_changes_nothing(market_address, two, options, said):
    with listening(market_address, 4) as lender:
        with pytest.raises(MisuseError, match=said):
            ask(market_address, **options)
        assert lender.budget.nbytes == 4 * BLOCK_BYTES
        with pytest.raises(MisuseError, match="lends nothing of"):
            lender.resize({None: 1, 7: 1})
        assert lender.budget.nbytes == 4 * BLOCK_BYTES


def test_what_fails_while_memory_is_given_back_is_not_counted_as_lent(market_address, two, monkeypatch):
    def fails(self, pool):
        raise MemoryError("by chance")

    with listening(market_address, 12, segment=4) as lender:
        fill_segments(lender, two[0], 310, 311, 312)
        with lender._turning, monkeypatch.context() as patch:
            patch.setattr(MarketMember, "drop_pool", fails)
            with pytest.raises(MemoryError):
                lender.resize({None: 8 * BLOCK_BYTES})
            assert lender.budget.lent == lender.lending.nbytes == 8 * BLOCK_BYTES
        lender.pause()
        until(lambda: not lender._lendings and lender.budget.lent == 0)
        lender.resume()
        until(lambda: lender._lendings)
