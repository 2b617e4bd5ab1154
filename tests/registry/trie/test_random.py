"""The prefix trie against a plain one, over random calls, with every invariant checked after each."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bench.registry.dict_trie import DictTrie
from kvmarket.registry.trie import offer_index
from kvmarket.registry.trie.prefix_trie import PrefixTrie
from tests.registry.trie.contents import SmallNodes, contents

KINDS = [PrefixTrie, SmallNodes]
pytestmark = pytest.mark.usefixtures("wide")


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("max_blocks", [None, 25])
@pytest.mark.parametrize("kind", KINDS)
def test_stress_against_the_oracle(block_size, max_blocks, kind, monkeypatch):
    """Do the same random things to both, and compare all they hold after each."""
    monkeypatch.setattr(offer_index, "PAGE_BITS", 4)  # offers are in several pages, and these grow
    monkeypatch.setattr(offer_index, "_LOW", 15)
    monkeypatch.setattr(offer_index, "_LEAST", 2)
    chance = random.Random(f"{block_size} {max_blocks} {kind}")
    held, oracle = kind(block_size, max_blocks=max_blocks), DictTrie(block_size, max_blocks)
    for _ in range(150):
        prompt = _prompt(chance, block_size)
        blocks = len(prompt) // block_size
        act = chance.random()
        if act < 0.4:
            first = 0 if chance.random() < 0.8 else chance.randrange(blocks + 1)
            _insert(held, oracle, prompt, chance.sample(range(60), blocks - first), first)
        elif act < 0.7:
            gone = [chance.randrange(60) for _ in range(chance.choice((1, 2, 20)))]
            assert held.remove(gone) == oracle.remove(gone)
        elif act < 0.9:
            given = np.array(prompt, np.int32) if chance.random() < 0.5 else prompt
            assert held.match(given) == oracle.match(prompt)
        else:
            assert held.match_all(prompt) == oracle.match_all(prompt)
        held._check()
        blocks = oracle.blocks()
        assert contents(held) == {prefix: tuple(entry.offers) for prefix, entry in blocks.items() if entry.offers}
        assert held._tree.stored == len(blocks)
    assert len(held) == len(oracle)


class TrieMachine(RuleBasedStateMachine):
    """Any sequence of calls leaves a sound trie that says what the oracle says."""

    @initialize(kind=st.sampled_from(KINDS), size=st.integers(1, 3), most=st.none() | st.integers(1, 9))
    def start(self, kind, size, most):
        self.held, self.oracle = kind(size, max_blocks=most), DictTrie(size, most)

    @rule(prompt=st.lists(st.integers(0, 1), max_size=14), data=st.data())
    def insert(self, prompt, data):
        blocks = len(prompt) // self.held.block_size
        first = data.draw(st.integers(0, blocks))
        most = blocks - first
        offers = data.draw(st.lists(st.integers(0, 16), min_size=most, max_size=most, unique=True))
        _insert(self.held, self.oracle, prompt, offers, first)

    @rule(prompt=st.lists(st.integers(0, 1), max_size=14))
    def match(self, prompt):
        assert self.held.match(prompt) == self.oracle.match(prompt)

    @rule(prompt=st.lists(st.integers(0, 1), max_size=14))
    def match_all(self, prompt):
        assert self.held.match_all(prompt) == self.oracle.match_all(prompt)

    @rule(offers=st.lists(st.integers(0, 16), max_size=4))
    def remove(self, offers):
        assert self.held.remove(offers) == self.oracle.remove(offers)

    @invariant()
    def sound(self):
        if hasattr(self, "held"):
            self.held._check()
            blocks = self.oracle.blocks()
            known = {prefix: tuple(entry.offers) for prefix, entry in blocks.items() if entry.offers}
            assert contents(self.held) == known
            assert self.held._tree.stored == len(blocks)


TrieMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestTrieMachine = TrieMachine.TestCase


def _insert(held, oracle, prompt, offers, first):
    """Put offers up in both; as every caller does, what is on other blocks is taken down before."""
    wanted = {offer: tuple(prompt[: at * oracle.block_size]) for at, offer in enumerate(offers, first + 1)}
    known = [(offer, prefix) for prefix, entry in oracle.blocks().items() for offer in entry.offers]
    gone = [offer for offer, prefix in known if wanted.get(offer, prefix) != prefix]
    assert held.remove(gone) == oracle.remove(gone)
    for each in (held, oracle):
        each.insert(prompt, offers, first)


def _prompt(chance, block_size):
    """Few heads, few tails, of any length: prompts share, branch and end everywhere, also within a block."""
    head, tail = chance.randrange(4), chance.randrange(6)
    row = [(head * 7 + place) % 3 for place in range(chance.randrange(8) * block_size)]
    row += [(tail * 5 + place) % 2 for place in range(chance.randrange(8) * block_size + chance.randrange(block_size))]
    return row
