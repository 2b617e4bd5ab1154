"""Whatever is lost, late, doubled or torn: nobody takes a wrong block, and in the end everybody knows all."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kvmarket.registry.protocol.numbering import Heard
from kvmarket.registry.space.standing import Pool
from tests.histories.node import OPERATIONS, POOL_OPERATIONS, Node, run


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_random_histories(first):
    for seed in range(first, first + 50):
        run(seed)


@pytest.mark.parametrize(("seed", "steps"), [(10573543, 25), (41011623, 40), (41094603, 40)])
def test_histories_that_went_wrong_once(seed, steps):
    """10573543: an engine left while no service lived, and its offers hid another one's of the same blocks.

    The others end in bad weather with some hundred messages under way: all is known once these have been heard.
    """
    run(seed, steps, pools=False)


def test_four_engines_for_longer():
    for seed in range(20):
        run(seed, steps=60, engines=4)


@pytest.mark.timeout(300)
def test_wrong_blocks_would_be_seen(monkeypatch):
    """Without numbers on messages and without generations of predecessors, as it once was, a history goes wrong."""

    def accept(heard: Heard, message) -> bool:
        heard.broken, heard._last = False, message.sequence
        return not message.empty

    monkeypatch.setattr(Heard, "accept", accept)
    monkeypatch.setattr(Pool, "has", lambda pool, block: bool(pool.generations[block.slot]))
    with pytest.raises(AssertionError, match="WRONG"):
        for seed in range(1700, 5000):  # one in some 1,000 does
            run(seed, steps=80, settle=False)


class Histories(RuleBasedStateMachine):
    """The same operations, chosen and shortened by hypothesis."""

    @initialize(seed=st.integers(0, 1 << 32), engines=st.integers(2, 3))
    def begin(self, seed: int, engines: int) -> None:
        self.node = Node(seed, engines)

    @rule(name=st.sampled_from(sorted(OPERATIONS | POOL_OPERATIONS)), which=st.integers(0, 2))
    def act(self, name: str, which: int) -> None:
        getattr(self.node, name)(self.node.engines[which % len(self.node.engines)])

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "node"):
            self.node.check()

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.node.calm_down()
            self.node.close()


def test_histories_that_hypothesis_finds():
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
