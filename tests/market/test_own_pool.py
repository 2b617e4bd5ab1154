"""What an engine joins a market with: only engines that can read each other's memory get one name."""

from __future__ import annotations

import pytest
import torch

from kvmarket import PagedCache
from kvmarket.market.offer import Stage
from kvmarket.market.own_pool import OwnPool, OwnPools
from kvmarket.processes.shared_file import Process
from kvmarket.transport import CudaMemory, export

SLOTS, BLOCK = 4, 16


@pytest.fixture
def space_of():
    """The space that an engine joins whose cache lies in memory like `memory`, on so many ranks a stage."""
    made: list[OwnPools] = []
    cache = PagedCache([torch.zeros(SLOTS, 2, BLOCK, 4)], block_size=BLOCK)
    shared = export(cache.storages())

    def space(facts: str, *ranks: int, cuda: bool = False) -> str:
        memory = CudaMemory(Process.current(), "GPU-0", ()) if cuda else shared
        stages = [Stage(cache.layout, (memory,) * each) for each in ranks]
        made.append(OwnPools(OwnPool(stages), None))
        return made[-1].joining(facts, stages).space

    yield space
    for pools in made:
        pools.close()


def test_engines_of_equal_facts_and_memory_meet(space_of):
    assert space_of("facts", 1) == space_of("facts", 1) == "facts/shm/1"
    assert space_of("facts", 2, 2) == space_of("facts", 2, 2) == "facts/shm/2+2"
    assert space_of("facts", 1, cuda=True) == space_of("facts", 1, cuda=True) == "facts/cuda/1"


def test_nobody_meets_who_could_not_be_read(space_of):
    names = [
        space_of("facts", 1),
        space_of("facts", 1, cuda=True),
        space_of("other facts", 1),
        space_of("facts", 2),
        space_of("facts", 1, 1),
        space_of("facts", 2, 1),
        space_of("facts", 1, 2),
    ]
    assert len(set(names)) == len(names)
