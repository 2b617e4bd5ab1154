"""A data half by itself, as a worker of an engine has it: nobody tells it of deaths, nor calls it when idle."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kvmarket import PagedCache
from kvmarket.errors import SlotError
from kvmarket.market.data import DataHalf
from kvmarket.pool.avoided import AT_ONCE
from kvmarket.ways import cpu
from tests.cli.test_lend import lender
from tests.lend.lends import lent
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until
from tests.scarcity import descriptors
from tests.sleepers import Sleeper, watching


def mapped(hit) -> bool:
    """Whether this process has the memory of the hit's pools mapped."""
    inodes = {str(file.inode) for pool in hit.pools.values() for file in pool.stages[0].ranks[0].files}
    rows = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return any(row[4] in inodes and "torch_" in row[-1] for row in rows)


@pytest.fixture
def worker():
    layers = [torch.zeros(8, 2, BLOCK, 24, dtype=torch.int16) for _ in range(2)]
    half = DataHalf(PagedCache(layers, block_size=BLOCK))
    yield half
    half.close()


def found_by(market_address: str, peer: Peer, seed: int):
    """A hit on what a peer offers; whoever matched it has left again."""
    scout, tokens = ModelEngine(market_address), prompt(16, seed)
    peer.publish(tokens, [0, 1, 2, 3])
    hit = matched(scout, tokens)
    scout.close()
    return hit


def test_an_idle_worker_drops_a_dead_engines_memory_by_itself(market_address, worker):
    peers = [Peer(market_address) for _ in range(2)]
    hits = [found_by(market_address, peer, 300 + number) for number, peer in enumerate(peers)]
    before = descriptors()
    for hit in hits:
        assert worker.fetch(hit, [0, 1, 2, 3]).wait() == 4
    assert mapped(hits[0]) and mapped(hits[1])
    peers[0].kill()
    assert until(lambda: not mapped(hits[0])) < 1
    assert mapped(hits[1]), "its owner lives"
    assert worker.fetch(hits[1], [0, 1, 2, 3]).wait() == 4
    peers[1].kill()
    assert until(lambda: not mapped(hits[1])) < 1
    until(lambda: descriptors() <= before and not watching())


def test_a_copy_in_flight_keeps_its_mapping_until_it_is_done(market_address, worker, monkeypatch):
    peer, let_on, real = Peer(market_address), threading.Event(), cpu.copy_blocks
    hit = found_by(market_address, peer, 302)

    def copy(*arguments, **options):
        assert let_on.wait(20)
        real(*arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = worker.fetch(hit, [0, 1, 2, 3])
    peer.kill()
    until(lambda: not worker.mappings._mapped)
    time.sleep(0.1)
    assert mapped(hit)
    with pytest.raises(SlotError, match=r"block id 2 is still being fetched.*wait\(\)"):
        worker.check_landed(np.array([7, 2]))
    worker.check_landed(np.array([4, 7]))
    let_on.set()
    until(lambda: not mapped(hit))  # though nobody asked whether it is done
    worker.check_landed(np.array([2]))
    assert moved.wait() == 4, "its generations still say that the bytes count"


def test_closed_it_watches_nobody_and_holds_nothing(market_address, worker):
    peer = Peer(market_address)
    hit = found_by(market_address, peer, 304)
    before = descriptors()
    assert worker.fetch(hit, [0, 1, 2, 3]).wait() == 4
    until(watching)
    worker.close()
    assert not watching() and descriptors() <= before and not mapped(hit)
    worker.close()
    peer.kill()


def test_a_pool_that_is_gone_is_not_passed_over_for_what_it_was(worker):
    for _ in range(AT_ONCE + 1):
        worker.mappings._skipped.for_now("a")
    assert "a" in worker.mappings._skipped.now()
    worker.forget(["a"])
    assert "a" not in worker.mappings._skipped.now()


@pytest.mark.parametrize("which", ["generations", "memory"])
def test_either_owner_of_a_pool_counts(market_address, worker, which):
    """Of a tensor-parallel engine the scheduler owns the generations, a worker the memory."""
    owner = ModelEngine(market_address)
    owner.publish(prompt(16, 303), [0, 1, 2, 3])
    hit = matched(owner, prompt(16, 303))
    (name,) = hit.pools
    assert worker.fetch(hit, [0, 1, 2, 3]).wait() == 4
    pool = worker.mappings._mapped[name]
    other = Sleeper()
    owners = (other.known, pool.owners[1]) if which == "generations" else (pool.owners[0], other.known)
    worker.mappings._mapped[name] = replace(pool, owners=owners)
    worker.mappings._watch_owners()
    other.kill()
    until(lambda: name not in worker.mappings._mapped)
    owner.close()


@pytest.mark.parametrize("told", [False, True], ids=["looks by itself", "is told"])
def test_memory_that_a_lender_takes_back_is_dropped_by_an_idle_worker(market_address, told):
    """Its scheduler hears of it, but tells it with the next step only."""
    layers = [torch.zeros(8, 2, BLOCK, 24, dtype=torch.int16) for _ in range(2)]
    half = DataHalf(PagedCache(layers, block_size=BLOCK), look_seconds=0.0 if told else 0.02)
    computes, scout, tokens = ModelEngine(market_address), ModelEngine(market_address), prompt(16, 305)
    with lender(market_address, "--host-gb", "0.001") as process:
        computes.publish(tokens, [0, 1, 2, 3])
        until(lambda: lent(scout, tokens))
        hit = scout.market.match(tokens)
        assert half.fetch(hit, [0, 1, 2, 3]).wait() == 4
        time.sleep(0.1)
        assert mapped(hit), "while it is lent"
        process.send_signal(signal.SIGUSR1)
        if told:
            until(lambda: not scout.market.match(tokens).pools.keys() & hit.pools.keys())
            time.sleep(0.1)
            assert mapped(hit), "nobody has said so"
            half.forget(list(hit.pools))
            assert not mapped(hit)
        else:
            assert until(lambda: not mapped(hit)) < 1
    half.close()
    computes.close()
    scout.close()
