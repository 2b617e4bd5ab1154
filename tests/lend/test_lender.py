"""A lender shares its memory out among the spaces in which there are engines."""

from __future__ import annotations

import logging
import time

import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.errors import MisuseError
from kvmarket.lend import lender as lender_module
from kvmarket.lend.budget import Budget
from kvmarket.lend.lender import Lender
from kvmarket.registry.client.asking import ask_status
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import Label
from tests.lend.lends import BLOCK_BYTES, Lends, engines_of, fill, lending, segments
from tests.model_engine import BLOCK, ModelEngine, prompt, until
from tests.other_version import service_of_another_version

CPU = torch.device("cpu")


def test_there_must_be_something_to_lend():
    with pytest.raises(MisuseError, match="--host-gb"):
        Lender(None, [])
    with pytest.raises(MisuseError, match="0 bytes"):
        Budget(CPU, 0)


def test_each_space_has_its_blocks(own_address):
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 16, segment=4) as lender:
        until(lambda: len(lender._lendings) == 2)
        fill(one, 1)
        fill(other, 1)
        lender.keeps(8)
        assert [len(each) for each in lender._lendings.values()] == [4, 4]
        for engine in (one, other):
            engine.market.retire(range(4, 8))
            until(lambda engine=engine: engine.take(prompt(4 * BLOCK, 1), [8, 9, 10, 11]) == 4)
            engine.close()


def test_a_space_without_engines_gives_way(own_address):
    """It keeps what it has until the memory is wanted elsewhere."""
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 12, segment=4) as lender:
        until(lambda: len(lender._lendings) == 2)
        fill(one, 0, 1)
        lender.keeps(8)
        one.close()
        until(lambda: sorted(lender._spaces.engines.values()) == [0, 1])
        assert len(lender) == 8, "they wait for who comes again"
        fill(other, 0, 1)
        until(lambda: sorted(segments(lender)) == [1, 2])
        fill(other, 2)
        until(lambda: segments(lender) == [3])
        lender.keeps(12)
        assert lender.budget.lent == 12 * BLOCK_BYTES
        other.close()


def test_a_new_space_gets_memory_of_one_without_engines(own_address):
    (one,) = engines_of(own_address, "one")
    with lending(own_address, 8, segment=4) as lender:
        fill(one, 0, 1)
        lender.keeps(8)
        (other,) = engines_of(own_address, "other")
        until(lambda: len(lender._lendings) == 2)
        assert segments(lender) == [1, 1], "also of one with engines that has more than one segment"
        one.close()
        (third,) = engines_of(own_address, "third")
        until(lambda: any(third.market._identity[0] in name for name, _ in lender._lendings))
        assert len(lender._lendings) == 2 and not any(one.market._identity[0] in name for name, _ in lender._lendings)
        for engine in (other, third):
            engine.close()


def test_a_space_with_engines_keeps_its_share(own_address):
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 16, segment=4) as lender:
        until(lambda: len(lender._lendings) == 2)
        fill(one, *range(8))
        until(lambda: sorted(segments(lender)) == [1, 3])
        fill(other, *range(8))
        until(lambda: segments(lender) == [2, 2])
        assert lender.budget.lent == 16 * BLOCK_BYTES
        for engine in (one, other):
            engine.close()


def counted(name: str) -> int:
    return counters.snapshot().get(name, 0)


def test_where_blocks_do_not_fit_it_is_said_and_nobody_loses_memory_for_it(own_address, monkeypatch):
    """It is tried again, and again, for nothing: so it must not cost others."""
    monkeypatch.setattr(lender_module, "AGAIN_SECONDS", 0.1)
    (engine,) = engines_of(own_address, "one")
    before = counted("lend_failed{LayoutError}")
    with lending(own_address, 8, segment=4) as lender:
        fill(engine, 0, 1)
        lender.keeps(8)
        cache = kvmarket.PagedCache([torch.zeros(4, 2, BLOCK, 24 * 99, dtype=torch.int16)], block_size=BLOCK)
        with kvmarket.connect(cache, kvmarket.Fingerprint.of(model="large blocks"), address=own_address):
            until(lambda: counted("lend_failed{LayoutError}") >= before + 3)
        assert len(lender) == 8 and segments(lender) == [2]
    engine.close()


def test_without_memory_of_their_kind_engines_are_passed_over(own_address):
    (engine,) = engines_of(own_address, "one")
    lender = Lender(own_address, [Budget(torch.device("cuda", 0), 1 << 30)])
    name = "lend_passed_over{no memory to lend to engines whose caches are on cpu}"
    before = counted(name)
    until(lambda: lender.turn() or counted(name) > before)
    assert not lender._lendings
    lender.close()
    engine.close()


def test_memory_that_cannot_be_had_now_is_asked_for_later(own_address, monkeypatch):
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8, segment=4) as lender:
        tries, add = [], lender_module.Lending.add_segment

        def refuse(self, nbytes):
            tries.append(nbytes)
            raise RuntimeError("no memory")

        monkeypatch.setattr(lender_module.Lending, "add_segment", refuse)
        fill(engine, 0, 1)
        until(lambda: tries)
        asked, more = [], lender._more
        monkeypatch.setattr(lender, "_more", lambda lending: asked.append(1) or more(lending))
        fill(engine, 2, 3)
        until(lambda: len(asked) >= 2)
        lender.keeps(4)
        assert tries == [4 * BLOCK_BYTES] and lender.lending.segments == 1
        monkeypatch.setattr(lender_module.Lending, "add_segment", add)
        lender.resume()  # it may be had now
        fill(engine, 4)
        lender.keeps(8)
    engine.close()


def test_a_long_prompt_gets_all_the_segments_that_it_needs(own_address):
    engine = ModelEngine(own_address, slots=64)
    with lending(own_address, 48, segment=4) as lender:
        engine.publish(prompt(40 * BLOCK, 9), list(range(40)))
        lender.keeps(40)
        assert segments(lender) == [10]
    engine.close()


def test_what_is_kept_already_takes_no_memory_of_others(own_address):
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 12, segment=4) as lender:
        fill(one, 0)
        until(lambda: len(lender._lendings) == 2)
        fill(one, 1)
        lender.keeps(8)
        fill(other, 0)
        lender.keeps(12)
        assert sorted(segments(lender)) == [1, 2]
        asked, more = [], lender._more
        lender._more = lambda lending: asked.append(lending) or more(lending)  # type: ignore[method-assign]
        again = ModelEngine(own_address, facts={"model": "other"})
        fill(again, 0)
        time.sleep(0.1)
        assert not asked and sorted(segments(lender)) == [1, 2]
        for engine in (one, other, again):
            engine.close()


def test_a_lending_that_fails_does_not_stop_the_others(own_address, monkeypatch):
    one, other = engines_of(own_address, "one", "other")
    with lending(own_address, 16, segment=4) as lender:
        until(lambda: len(lender._lendings) == 2)
        first = next(iter(lender._lendings.values()))
        monkeypatch.setattr(first, "turn", lambda more: 1 / 0)
        fill(one, 0)
        fill(other, 0)
        until(lambda: len(lender) == 4)
        for engine in (one, other):
            engine.close()


def test_it_waits_for_a_market_and_survives_what_fails(own_address, monkeypatch, caplog):
    lender = Lends(own_address, 8)
    (engine,) = engines_of(own_address, "one")
    look, fails = lender_module.Lending.turn, [RuntimeError("a test")]

    def turn(self, more):
        if fails:
            raise fails.pop()
        return look(self, more)

    with caplog.at_level(logging.INFO, "kvmarket.lend"):
        monkeypatch.setattr(lender_module.Lending, "turn", turn)
        fill(engine, 1)
        lender.keeps(4)
    assert "lending" in caplog.text and not fails
    lender.end()
    engine.close()


def test_beside_a_market_of_another_version_it_lends_where_engines_of_its_own_meet(own_address):
    with service_of_another_version(own_address):
        (engine,) = engines_of(own_address, "one")
        assert str(engine.market._control.home.at) != own_address
        with lending(own_address, 8) as lender:
            fill(engine, 0)
            lender.keeps(4)
        engine.close()


def test_it_is_called_as_the_engines_but_has_no_port(own_address):
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8):
        lenders = [member for member in ask_status(Address(own_address)).members if member.lends]
        assert [member.label for member in lenders] == [Label("one", 0)]
    engine.close()


def test_a_space_with_lenders_alone_is_not_joined(own_address):
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8) as first:
        fill(engine, 0)
        first.keeps(4)
        engine.close()
        until(lambda: not any(first._spaces.engines.values()))
        other = Lends(own_address, 8)
        time.sleep(0.2)
        assert not other._lendings and not other._spaces.described
        (engine,) = engines_of(own_address, "one")
        until(lambda: other._lendings)
        other.end()
        engine.close()
