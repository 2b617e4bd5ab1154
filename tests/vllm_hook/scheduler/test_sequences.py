"""Scheduler side and worker side together, through random sequences of what vLLM does to them."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.toy_vllm import PAGES, Toy
from vllm_hook.worker import side

SEEDS, STEPS = 60, 250
KEPT = 20  # steps that something may be left to do
DEAD = 0.015  # chance that all offers die between two steps
OUT, IN = 0.01, 0.02  # chances that the market is left, and joined, between two steps


@pytest.mark.parametrize("here", [True, False], ids=["worker here", "worker elsewhere"])
@pytest.mark.parametrize("queue", [1, 2, 3])
def test_each_load_ends_once_and_offers_stay_true(queue: int, here: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(side, "LOOKOUT_SECONDS", 0.0)
    imported = offered = 0
    for seed in range(SEEDS):
        toy, waited = Toy(seed, queue, here=here), 0
        for _ in range(STEPS):
            toy.control.found = toy.chance.choice((0, 2, 4, 6))
            for _ in range(toy.chance.choice((0, 0, 0, 1, 2))):
                toy.come()
            drawn = toy.chance.random()
            if drawn < DEAD:
                (toy.side.invalidate if drawn < DEAD / 2 else toy.side.fail)("test")
            elif drawn < DEAD + OUT:
                toy.leave()
            elif drawn < DEAD + OUT + IN:
                toy.join()
            toy.step()
            waited = waited + 1 if len(toy.side._deferred) else 0
            assert waited < KEPT, f"seed {seed}: something is left to do for ever"
            imported += len(toy.landed)
            offered += len(toy.control.live())
        toy.join()
        for _ in range(STEPS):
            toy.step()
        assert toy.idle and not +toy.loading, f"seed {seed}: a request hangs"
        assert len(toy.free) == PAGES, f"seed {seed}: pages are lost"
        left = toy.side._loads
        assert not (toy.side._deferred or toy.side._states or left._flights or left._reported_early or left._found)
        assert not (toy.worker._moving or toy.worker._ahead or toy.worker._unstarted)
    assert imported > 10 * SEEDS and offered > 100 * SEEDS
