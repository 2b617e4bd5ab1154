"""A lender shares its memory out among the spaces in which there are engines."""

from __future__ import annotations

import logging

import pytest
import torch

from kvmarket import counters
from kvmarket.errors import MisuseError
from kvmarket.lend import budget as budget_module
from kvmarket.lend import lender as lender_module
from kvmarket.lend.budget import Budget, free_bytes
from kvmarket.lend.lender import Lender
from kvmarket.registry.client.asking import ask_status
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import Label
from tests.lend.lends import BLOCK_BYTES, Lends, lending
from tests.model_engine import BLOCK, ModelEngine, prompt, until
from tests.other_version import service_of_another_version

CPU = torch.device("cpu")


@pytest.mark.parametrize(("nbytes", "segment", "count"), [(10, 4, 3), (8, 4, 2), (3, 4, 1), (1024, 1, 64)])
def test_memory_is_cut_into_equal_segments(nbytes, segment, count):
    budget = Budget(CPU, nbytes, segment)
    assert budget.segment_bytes == nbytes // count
    for _ in range(count):
        assert budget.room
        budget.lent += budget.segment_bytes
    assert not budget.room


def test_there_must_be_something_to_lend():
    with pytest.raises(MisuseError, match="--host-gb"):
        Lender(None, [])
    with pytest.raises(MisuseError, match="0 bytes"):
        Budget(CPU, 0)


def test_what_others_need_is_neither_lent_nor_kept(monkeypatch):
    free = [0]
    monkeypatch.setattr(budget_module, "free_bytes", lambda device: free[0])
    assert Budget(CPU, 8, 4).room and not Budget(CPU, 1).short, "nothing is to be kept free"
    budget = Budget(CPU, 8, 4, keep_free=10)
    for free[0], short, room in ((9, True, False), (10, False, False), (13, False, False), (14, False, True)):
        assert (budget.short, budget.room) == (short, room)
    budget.lent = 8
    assert not budget.room


def engines_of(address: str, *models: str) -> list[ModelEngine]:
    return [ModelEngine(address, facts={"model": model}) for model in models]


def fill(engine: ModelEngine, *seeds: int) -> None:
    """Offer a prompt of four blocks for each seed, each in slots of its own."""
    for seed in seeds:
        tokens, slots = prompt(4 * BLOCK, seed), list(range(4 * seed, 4 * seed + 4))
        for block, slot in enumerate(slots):
            engine.write(slot, tokens[: (block + 1) * BLOCK])
        engine.market.publish(tokens, slots)


def segments(lender: Lends) -> list[int]:
    """The number of segments of each space, in the order in which they were joined."""
    return [lending.segments for lending in lender._lendings.values()]


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
        until(lambda: sorted(lender._engines.values()) == [0, 1])
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
        until(lambda: any(third.market._identity[0] in name for name in lender._lendings))
        assert len(lender._lendings) == 2 and not any(one.market._identity[0] in name for name in lender._lendings)
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


def test_where_blocks_do_not_fit_it_is_said_and_tried_later(own_address, monkeypatch, caplog):
    monkeypatch.setattr(lender_module, "AGAIN_SECONDS", 0.1)
    (engine,) = engines_of(own_address, "one")
    lender = Lender(own_address, [Budget(CPU, BLOCK_BYTES - 1)])
    before = counters.snapshot().get("lend_failed{LayoutError}", 0)
    monkeypatch.setattr(lender_module, "LOOK_SECONDS", 0.0)
    lender.turn()
    lender.turn()
    assert counters.snapshot()["lend_failed{LayoutError}"] == before + 1 and not lender._lendings
    until(lambda: lender.turn() or counters.snapshot()["lend_failed{LayoutError}"] == before + 2)
    engine.close()


def test_without_memory_of_their_kind_engines_are_passed_over(own_address):
    (engine,) = engines_of(own_address, "one")
    lender = Lender(own_address, [Budget(torch.device("cuda", 0), 1 << 30)])
    lender.turn()
    name = "lend_passed_over{no memory to lend to engines whose caches are on cpu}"
    assert counters.snapshot()[name] and not lender._lendings
    engine.close()


def test_memory_that_cannot_be_had_is_not_asked_for_again(own_address, monkeypatch):
    (engine,) = engines_of(own_address, "one")
    with lending(own_address, 8, segment=4) as lender:
        tries = []

        def refuse(self, nbytes):
            tries.append(nbytes)
            raise RuntimeError("no memory")

        monkeypatch.setattr(lender_module.Lending, "add_segment", refuse)
        fill(engine, 0, 1)
        until(lambda: tries)
        asked = []
        more = lender._more
        monkeypatch.setattr(lender, "_more", lambda lending: asked.append(1) or more(lending))
        fill(engine, 2, 3)
        until(lambda: len(asked) >= 2)
        lender.keeps(4)
        assert tries == [4 * BLOCK_BYTES] and lender.lending.segments == 1
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


def test_free_memory_is_that_of_the_machine_or_of_the_control_group(monkeypatch, tmp_path):
    assert free_bytes(CPU) > 0
    monkeypatch.setattr(budget_module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(budget_module, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       7 kB\n")
    assert free_bytes(CPU) == 7 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    for most, expected in (("max", 7 * 1024), ("3000", 2000), ("900000", 7 * 1024)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert free_bytes(CPU) == expected
    (tmp_path / "meminfo").write_text("")
    assert free_bytes(CPU) == 0


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
