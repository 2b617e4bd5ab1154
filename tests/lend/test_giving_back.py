"""A lender gives memory back when it is told to, and while others have too little."""

from __future__ import annotations

import os
import signal

from kvmarket.lend import budget as budget_module
from kvmarket.lend.lending import Lending
from tests.lend.lends import BLOCK_BYTES, Lends, engines_of, fill, lending, segments
from tests.model_engine import BLOCK, ModelEngine, prompt, until


def test_a_signal_takes_all_memory_back_and_another_lends_it_again(own_address):
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8, segment=4) as lender:
        fill(engine, 0, 1)
        lender.keeps(8)
        lender.pause()
        until(lambda: not lender._lendings and lender.budget.lent == 0)
        fill(engine, 2)
        assert not lender.turn()
        lender.resume()
        until(lambda: lender._lendings)
        lender.keeps(8)
    engine.close()


def test_memory_is_given_back_while_others_have_too_little(own_address, monkeypatch):
    free = [10 * BLOCK_BYTES]
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: free[0])
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 12, segment=4, keep_free=5 * BLOCK_BYTES) as lender:
        fill(engine, 0)
        lender.keeps(4)
        free[0] = 6 * BLOCK_BYTES
        asked, more = [], lender._more
        monkeypatch.setattr(lender, "_more", lambda lending: asked.append(more(lending)))
        fill(engine, 1)
        until(lambda: asked)
        assert asked == [False] and lender.lending.segments == 1, "another segment would leave too little"
        free[0] = 10 * BLOCK_BYTES
        fill(engine, 2)
        until(lambda: lender.lending.segments == 2)
        free[0] = 4 * BLOCK_BYTES
        until(lambda: not lender._lendings and lender.budget.lent == 0)
        free[0] = 9 * BLOCK_BYTES
        until(lambda: lender._lendings)
    engine.close()


def test_signals_that_come_in_any_order_at_once(own_address):
    """They take no lock that the interrupted code may hold."""
    lender = Lends(own_address, 8)
    for number, act in ((signal.SIGUSR1, lender.pause), (signal.SIGUSR2, lender.resume)):
        signal.signal(number, lambda *_, act=act: act())
    try:
        for _ in range(2000):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
    lender.end()


def test_nothing_is_taken_from_others_where_more_must_stay_free(own_address, monkeypatch):
    free = [100 * BLOCK_BYTES]
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: free[0])
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 40, segment=4, keep_free=5 * BLOCK_BYTES) as lender:
        until(lambda: len(lender._lendings) == 2)
        fill(one, 0, 1, 2, 3)
        lender.keeps(16)
        free[0] = 7 * BLOCK_BYTES
        fill(other, 0, 1)
        lender.keeps(20)
        assert sorted(segments(lender)) == [1, 4]
        for engine in (one, other):
            engine.close()


def test_a_pause_that_ends_while_memory_is_given_back(own_address, monkeypatch):
    """What was killed is given back all the same: it would be kept, and offered to nobody."""
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8) as lender:
        fill(engine, 0)
        lender.keeps(4)
        first, kill = lender.lending, Lending.kill
        monkeypatch.setattr(Lending, "kill", lambda self: (kill(self), lender.resume()))
        lender.pause()
        until(lambda: lender._lendings and lender.lending is not first)
        lender.keeps(4)
        reader = ModelEngine(own_address, facts={"model": "one"})
        engine.close()
        until(lambda: reader.take(prompt(4 * BLOCK, 0), [0, 1, 2, 3]) == 4)
        reader.close()
