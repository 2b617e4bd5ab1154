"""The ends of the prefixes that engines have just offered."""

from __future__ import annotations

import pytest

from kvmarket import counters
from kvmarket.lend import tips as tips_module
from kvmarket.lend.keys import first_key, keys_of
from kvmarket.lend.tips import Tip, Tips
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Before, PoolRecord
from kvmarket.registry.trie.tokens import as_tokens

ENGINE = PoolRecord("e", 10, (Process(1, 1, 1),), b"")
LENDER = PoolRecord("l", 10, (Process(2, 1, 1),), b"", lent=True)


def block(slot: int, generation: int = 1) -> Before:
    return Before(slot, 1, generation)


@pytest.fixture
def tips():
    return Tips()


def test_offers_that_go_on_from_one_another_are_one_tip(tips):
    tips.note(ENGINE, block(1), None)
    tips.note(ENGINE, block(2), block(1))
    tips.note(ENGINE, block(3), block(2))
    assert tips.take(9) == [Tip("e", block(3), None)]
    tips.note(ENGINE, block(4), block(3))
    tips.note(ENGINE, block(5), block(4))
    assert tips.take(9) == [Tip("e", block(5), block(3))], "it goes on from one that was taken before"


def test_branches_are_a_tip_each(tips):
    for slot in (2, 3):
        tips.note(ENGINE, block(slot), block(1))
    tips.note(ENGINE, block(4), block(1, generation=2))
    assert [tip.block.slot for tip in tips.take(9)] == [2, 3, 4]


def test_the_oldest_come_first(tips):
    assert tips.take(1) == []
    for slot in range(3):
        tips.note(ENGINE, block(slot), None)
    assert [tip.block.slot for tip in tips.take(2)] == [0, 1]
    assert [tip.block.slot for tip in tips.take(2)] == [2]


def test_offers_of_lenders_are_no_tips(tips):
    tips.note(LENDER, block(1), None)
    assert tips.take(9) == []


def test_of_too_many_the_oldest_are_passed_over(tips, monkeypatch):
    monkeypatch.setattr(tips_module, "MOST", 2)
    before = counters.snapshot().get("lend_passed_over{offers came faster than they were looked at}", 0)
    for slot in range(3):
        tips.note(ENGINE, block(slot), None)
    assert [tip.block.slot for tip in tips.take(9)] == [1, 2]
    assert counters.snapshot()["lend_passed_over{offers came faster than they were looked at}"] == before + 1


def test_a_key_names_a_block_with_all_before_it():
    tokens = as_tokens([1, 2, 3, 4, 5, 6])
    keys = keys_of(tokens, 2, first_key(""))
    assert len(set(keys)) == 3
    assert keys_of(tokens[:5], 2, first_key("")) == keys[:2], "of whole blocks"
    assert keys_of(tokens[4:], 2, keys[1]) == keys[2:]
    assert not set(keys) & set(keys_of(tokens, 2, first_key("t")))
    for other in ([9, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6 + (1 << 30)], [1, 2, 3, 4, 5 + (1 << 30), 6]):
        assert keys_of(as_tokens(other), 2, first_key(""))[2] != keys[2]
    assert keys_of(tokens[:1], 2, first_key("")) == []
