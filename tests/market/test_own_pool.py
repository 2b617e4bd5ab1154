"""What an engine joins a market with: only engines that can read each other's memory get one name."""

from __future__ import annotations

import pytest
import torch

from kvmarket import Fingerprint, PagedCache
from kvmarket.market.offer import Stage
from kvmarket.market.own_pool import OwnPool, OwnPools
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import Join, pack_message, unpack_request
from kvmarket.registry.protocol.status import MAX_FACTS, MAX_LABEL, NO_LABEL, Label
from kvmarket.transport import CudaMemory, export

SLOTS, BLOCK = 4, 16


@pytest.fixture
def joining():
    """What an engine of this fingerprint joins with, whose cache lies in memory of a kind, on so many ranks a stage."""
    made: list[OwnPools] = []
    cache = PagedCache([torch.zeros(SLOTS, 2, BLOCK, 4)], block_size=BLOCK)
    shared = export(cache.storages())

    def join(fingerprint: Fingerprint, *ranks: int, cuda: bool = False, label: Label = NO_LABEL) -> Join:
        memory = CudaMemory(Process.current(), "GPU-0", ()) if cuda else shared
        stages = [Stage(cache.layout, (memory,) * each) for each in ranks]
        made.append(OwnPools([OwnPool(stages)]))
        return made[-1].joining(fingerprint, stages, label)

    yield join
    for pools in made:
        pools.close()


@pytest.fixture
def space_of(joining):
    """The space that an engine joins."""
    return lambda *given, **options: joining(*given, **options).space


ONE, OTHER = Fingerprint("1" * 32), Fingerprint("2" * 32)


def test_engines_of_equal_facts_and_memory_meet(space_of):
    assert space_of(ONE, 1) == space_of(ONE, 1) == f"{ONE.hex}/shm/1"
    assert space_of(ONE, 2, 2) == space_of(ONE, 2, 2) == f"{ONE.hex}/shm/2+2"
    assert space_of(ONE, 1, cuda=True) == space_of(ONE, 1, cuda=True) == f"{ONE.hex}/cuda/1"


def test_nobody_meets_who_could_not_be_read(space_of):
    names = [
        space_of(ONE, 1),
        space_of(ONE, 1, cuda=True),
        space_of(OTHER, 1),
        space_of(ONE, 2),
        space_of(ONE, 1, 1),
        space_of(ONE, 2, 1),
        space_of(ONE, 1, 2),
    ]
    assert len(set(names)) == len(names)


def test_an_engine_tells_what_its_space_is_named_by(joining):
    fingerprint = Fingerprint.of(model="m", dtype=torch.float16)
    told = {fact.name: fact.text for fact in joining(fingerprint, 2, 1, cuda=True).facts}
    assert told == {
        "fingerprint": f"{fingerprint.hex[:8]}…",
        "kind of memory": "cuda",
        "ranks of each stage": "2+1",
        "shape of a block": told["shape of a block"],
        "model": "m",
        "dtype": "float16",
    }
    assert f"{BLOCK} tokens" in told["shape of a block"]


def test_an_engine_is_called_by_its_label_or_else_by_its_model(joining):
    fingerprint = Fingerprint.of(model="m")
    assert joining(fingerprint, 1).label == Label("m", 0)
    assert joining(fingerprint, 1, label=Label("", 80)).label == Label("m", 80)
    assert joining(fingerprint, 1, label=Label("name", 80)).label == Label("name", 80)
    assert joining(ONE, 1).label == NO_LABEL


def test_the_most_facts_can_be_sent(joining):
    """With names and texts of the longest kind, in characters that take four bytes."""
    many = Fingerprint.of(**{"𒀀" * 200 + str(number): "𒀁" * 200 for number in range(2000)})
    join = joining(many, 1, label=Label("𒀀" * MAX_LABEL, 65535))
    frame = pack_message(join)
    assert unpack_request(frame) == join and len(join.facts) <= MAX_FACTS and len(frame) < 1 << 19
