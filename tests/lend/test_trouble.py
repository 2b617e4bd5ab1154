"""Memory that is taken back, a service that dies, and what fails in the middle."""

from __future__ import annotations

import os
import threading

from kvmarket.cli.top import ask_status
from kvmarket.lend.lending import Lending
from kvmarket.market.fetch import Fetch
from kvmarket.registry.protocol.address import Address
from tests.lend.lends import BLOCK_BYTES, churn, fill_segments, lending, lent
from tests.model_engine import BLOCK, ModelEngine, matched, prompt, until

CORRUPT = "fetch_corrupt{bytes that arrived do not have the checksum of their offer: look for faulty memory or links}"


def test_a_segment_taken_back_is_dead_at_once_and_its_memory_is_free(market_address, two):
    computes, reads = two
    with lending(market_address, 8, segment=4) as lender:
        prompts = fill_segments(lender, computes, 100, 101)
        assert lender.lending.segments == 2 and lender.lending.nbytes == 8 * BLOCK_BYTES
        hits = [matched(reads, tokens) for tokens in prompts]
        taken = lender.lending._segments[1].pool.id
        lender.stop()
        lender._thread.join()
        assert lender.lending.take_back() == 4 * BLOCK_BYTES
        assert [reads.market.fetch(hit, [0, 1, 2, 3]).wait() for hit in hits] == [4, 0]
        until(lambda: taken not in reads.market._data.mappings._mapped)
        until(lambda: reads.market.match(prompts[1]).blocks == 0)
        assert len(lender) == 4 and reads.take(prompts[0], [0, 1, 2, 3]) == 4


def test_a_segment_is_taken_back_in_the_middle_of_copies(market_address, two, monkeypatch):
    computes, _ = two
    with lending(market_address, 8, segment=4) as lender:
        for number in range(2):
            computes.publish(prompt(4 * BLOCK, 110 + number), list(range(4 * number, 4 * number + 4)))
            lender.keeps(4 * number + 4)
        lender.stop()
        lender._thread.join()
        computes.publish(prompt(4 * BLOCK, 112), [8, 9, 10, 11])
        until(lambda: lender.lending.tips._tips)
        monkeypatch.setattr(Lending, "_conclude", None)
        monkeypatch.setattr(Fetch, "done", lambda self: False)
        lender.turn()
        assert lender.lending._pulls
        lender.lending.take_back()
        monkeypatch.undo()
        until(lambda: not lender.turn())
        assert len(lender.lending._keeper) <= 4 and not lender.lending._keeper.pinned


def test_a_lender_goes_on_with_a_new_service(own_address):
    """It has its blocks, and offers them to whoever comes."""
    computes, tokens = ModelEngine(own_address), prompt(3 * BLOCK, 120)
    with lending(own_address, 8) as lender:
        computes.publish(tokens, [0, 1, 2])
        lender.keeps(3)
        os.kill(ask_status(Address(own_address)).service.pid, 9)
        churn(computes)
        reads = ModelEngine(own_address)
        until(lambda: reads.take(tokens, [0, 1, 2]) == 3)
        for engine in (reads, computes):
            engine.close()


def test_what_fails_in_the_middle_is_not_done_twice(market_address, two, monkeypatch):
    computes, reads = two
    offer, fails = Lending._offer, [MemoryError("a test")]

    def refuse(self, *what):
        if fails:
            raise fails.pop()
        offer(self, *what)

    monkeypatch.setattr(Lending, "_offer", refuse)
    with lending(market_address, 8) as lender:
        computes.publish(prompt(2 * BLOCK, 240), [0, 1])
        until(lambda: not fails)
        computes.publish(prompt(2 * BLOCK, 241), [2, 3])
        until(lambda: lender.at_rest() and lent(reads, prompt(2 * BLOCK, 241)))


def test_threads_and_mappings_go_with_their_segment(market_address, two):
    computes, _ = two
    before = set(threading.enumerate())
    with lending(market_address, 8, segment=4) as lender:
        for number in range(2):
            computes.publish(prompt(4 * BLOCK, 250 + number), list(range(4 * number, 4 * number + 4)))
            lender.keeps(4 * number + 4)
        half = lender.lending._segments[1]._halves[0]
        assert half.mappings._mapped
        with_two = set(threading.enumerate())
        lender.stop()
        lender._thread.join()
        lender.lending.take_back()
        assert not half.mappings._mapped and len(with_two - set(threading.enumerate())) == 2, (
            "that of copies, and its own"
        )
    until(lambda: set(threading.enumerate()) <= before)
