"""What must agree between engines, as the scheduler side puts it together from its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket import PagedCache
from kvmarket.errors import LayoutError
from kvmarket.layout.layout import Layout
from kvmarket.market.data import DataHalf
from vllm_hook.engine import facts
from vllm_hook.identity.naming import Weights
from vllm_hook.metadata import RankMemory


def config(**parallel: int) -> Any:
    return SimpleNamespace(model_config=SimpleNamespace(model="model"), parallel_config=ParallelConfig(**parallel))


@dataclass
class ParallelConfig:
    """Named as vLLM's, of which these fields say where a process is."""

    data_parallel_rank: int = 0
    data_parallel_size: int = 1


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts.compat, "version", lambda: "0")
    monkeypatch.setattr(facts, "environment", dict)


def ranks(*stages: int, pages: str = "p") -> list[RankMemory]:
    """Ranks of these pipeline stages; what their pages mean depends on the stage."""
    return [RankMemory(None, None, (("pages", f"{pages}{stage}"),), stage=stage) for stage in stages]


def fingerprint(engine: Any, memories: list[RankMemory]) -> str:
    return facts.fingerprint(engine, memories, Weights("w")).hex


def test_engines_cut_up_otherwise_have_other_fingerprints():
    cuts = [(0,), (0, 0), (0, 1), (0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 2, 3)]
    made = {fingerprint(config(), ranks(*cut)) for cut in cuts}
    assert len(made) == len(cuts)
    assert fingerprint(config(), ranks(0, 1)) in made
    assert fingerprint(config(), ranks(0, 1, pages="q")) not in made, "the layers of the stages count"


def test_data_parallel_ranks_have_one_fingerprint():
    made = {fingerprint(config(data_parallel_rank=rank, data_parallel_size=4), ranks(0, 0)) for rank in range(4)}
    assert len(made) == 1


def test_stages_have_their_own_layouts_and_the_ranks_of_one_the_same():
    one, two = (DataHalf(PagedCache([torch.zeros(4, 8)], 16)) for _ in range(2))
    long = DataHalf(PagedCache([torch.zeros(4, 8), torch.zeros(4, 8)], 16))

    def rank(half: DataHalf, stage: int, layout: Layout | None = None, **more: Any) -> RankMemory:
        return RankMemory(half.memory, layout or half.cache.layout, stage=stage, **more)

    stages = facts.stages_of([rank(one, 0), rank(two, 0), rank(long, 1)])
    assert [stage.layout for stage in stages] == [one.cache.layout, long.cache.layout]
    assert [stage.ranks for stage in stages] == [(one.memory, two.memory), (long.memory,)]
    with pytest.raises(LayoutError, match="different KV caches"):
        facts.stages_of([rank(one, 0), rank(long, 0)])
    with pytest.raises(LayoutError, match="different KV caches"):
        facts.stages_of([rank(one, 0), rank(two, 0, facts=(("device", "other"),))])
    with pytest.raises(LayoutError, match="no memory"):
        facts.stages_of([rank(one, 0), RankMemory(None, None)])
