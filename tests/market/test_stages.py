"""A pool of pipeline stages and tensor-parallel ranks: each rank has memory and, by its stage, a layout of its own."""

from __future__ import annotations

import time

import pytest
import torch

from kvmarket import Fingerprint, PagedCache
from kvmarket.errors import LayoutError
from kvmarket.market.control import ControlHalf
from kvmarket.market.data import DataHalf
from kvmarket.market.offer import Stage
from tests.model_engine import BLOCK, prompt

SLOTS = 8


class Ranks:
    """An engine of several stages and ranks in one process, its caches full of random bytes."""

    def __init__(self, address: str, facts: str, layers: tuple[int, ...], ranks: int, seed: int = 0) -> None:
        """`layers` of each stage, each of `ranks` ranks."""
        make = torch.Generator().manual_seed(seed)
        self.tensors = [
            [torch.randint(0, 1 << 30, (SLOTS, 2, BLOCK, 3), generator=make, dtype=torch.int32) for _ in range(count)]
            for count in layers
            for _ in range(ranks)
        ]
        self.halves = [DataHalf(PagedCache(each, BLOCK), rank) for rank, each in enumerate(self.tensors)]
        per_stage = [self.halves[at : at + ranks] for at in range(0, len(self.halves), ranks)]
        stages = [Stage(group[0].cache.layout, tuple(half.memory for half in group)) for group in per_stage]
        self.control = ControlHalf(stages, Fingerprint.of(model=facts), "", address, finds_own=False)

    def close(self) -> None:
        self.control.close()
        for half in self.halves:
            half.close()


@pytest.fixture
def start(market_address):
    engines: list[Ranks] = []

    def make(*what: object) -> Ranks:
        engines.append(Ranks(market_address, *what))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def blocks_found(engine: Ranks, tokens: list[int], at_least: int = 1) -> int:
    end = time.monotonic() + 5
    while (blocks := engine.control.match(tokens).blocks) < at_least and time.monotonic() < end:
        time.sleep(0.005)
    return blocks


@pytest.mark.parametrize(("layers", "ranks"), [((2,), 2), ((1, 2), 1), ((2, 1, 3), 2)], ids=["tp2", "pp2", "pp3 tp2"])
def test_each_rank_fetches_from_the_same_rank(start, layers, ranks):
    owner, reader = start(f"ranks {layers}", layers, ranks, 1), start(f"ranks {layers}", layers, ranks, 2)
    tokens = prompt(3 * BLOCK, 70)
    owner.control.offer(tokens, [5, 0, 3], owner.control.generations([5, 0, 3]))
    assert blocks_found(reader, tokens, 3) == 3
    assert blocks_found(owner, tokens, 0) == 0, "what it offers itself is not put into its replica"
    hit = reader.control.match(tokens)
    for half, theirs, ours in zip(reader.halves, owner.tensors, reader.tensors, strict=True):
        assert half.fetch(hit, [1, 2, 7]).wait() == 3
        for source, destination in zip(theirs, ours, strict=True):
            assert torch.equal(destination[[1, 2, 7]], source[[5, 0, 3]])
    owner.control.retire([0])
    assert [half.fetch(hit, [1, 2, 7]).wait() for half in reader.halves] == [1] * len(reader.halves)


def test_engines_cut_up_otherwise_never_match(start):
    same = "one fingerprint for all"
    owner, tokens = start(same, (1, 1), 1), prompt(2 * BLOCK, 71)
    others = [start(same, (1,), 2), start(same, (2,), 1), start(same, (1, 1), 2)]
    owner.control.offer(tokens, [0, 1], owner.control.generations([0, 1]))
    assert blocks_found(start(same, (1, 1), 1), tokens, 2) == 2
    assert [other.control.match(tokens).blocks for other in others] == [0, 0, 0]


def test_other_layers_in_a_stage_are_another_geometry(start):
    start("layers", (1, 2), 1)
    with pytest.raises(LayoutError, match="blocks of"):
        start("layers", (2, 1), 1)


def test_stages_hold_the_same_slots():
    caches = [PagedCache([torch.zeros(slots, BLOCK, 4)], BLOCK) for slots in (4, 5)]
    stages = [Stage(half.cache.layout, (half.memory,)) for half in map(DataHalf, caches)]
    with pytest.raises(LayoutError, match=r"4 slots of .* and 5 slots"):
        ControlHalf(stages, Fingerprint.of(model="slots"))
