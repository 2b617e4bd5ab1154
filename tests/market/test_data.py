"""A pool that takes long to be mapped is waited for by those who fetch from it, and by nobody else."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvmarket.market import fetch
from kvmarket.processes.shared_file import Process
from tests.model_engine import BLOCK, ModelEngine, matched, prompt, until
from tests.sleepers import watching


@pytest.fixture
def mapping(market_address, monkeypatch):
    """A reader that has mapped one owner's pool and is about to map another's, which waits until it is let on."""
    old, new, reader = (ModelEngine(market_address) for _ in range(3))
    old.publish(prompt(16, 60), [0, 1, 2, 3])
    new.publish(prompt(16, 61), [0, 1, 2, 3])
    hits = [matched(reader, prompt(16, seed)) for seed in (60, 61)]
    assert reader.market.fetch(hits[0], [0, 1, 2, 3]).wait() == 4
    data, begun, let_on, real = reader.market._data, threading.Semaphore(0), threading.Event(), []
    real.append(data.mover.prepare)

    def prepare(source, owner):
        begun.release()
        assert let_on.wait(20)
        return real[0](source, owner)

    monkeypatch.setattr(data.mover, "prepare", prepare)
    yield reader, hits, begun, let_on
    let_on.set()
    for engine in (old, new, reader):
        engine.close()


def test_others_do_not_wait_for_a_mapping(mapping):
    reader, (known, unknown), begun, let_on = mapping
    with ThreadPoolExecutor(2) as threads:
        fetches = [threads.submit(reader.market.fetch, unknown, ids) for ids in ([8, 9, 10, 11], [12, 13, 14, 15])]
        assert begun.acquire(timeout=20)
        assert reader.market.fetch(known, [4, 5, 6, 7]).wait() == 4
        reader.market._data.check_landed(np.array([4]))
        reader.market._data.forget(["a pool that nobody knows"])
        assert not any(fetch.done() for fetch in fetches)
        let_on.set()
        assert [fetch.result().wait() for fetch in fetches] == [4, 4]
    assert not begun.acquire(blocking=False), "mapped once, for both"


def test_a_pool_that_goes_while_it_is_mapped_is_not_kept(mapping):
    reader, (_, unknown), begun, let_on = mapping
    with ThreadPoolExecutor(1) as threads:
        fetch = threads.submit(reader.market.fetch, unknown, [8, 9, 10, 11])
        assert begun.acquire(timeout=20)
        reader.market._data.forget(list(unknown.pools))
        let_on.set()
        assert fetch.result().wait() == 4, "its generations still say that the bytes count"
    assert not set(unknown.pools) & set(reader.market._data.mappings._mapped)
    assert reader.market.fetch(unknown, [8, 9, 10, 11]).wait() == 4, "mapped again"


@pytest.fixture
def offered(market_address):
    """A reader, an owner that offers two blocks of a prompt, the reader's hit on them, and the prompt."""
    engine, owner = ModelEngine(market_address), ModelEngine(market_address)
    tokens = prompt(2 * BLOCK, 63)
    owner.publish(tokens, [3, 4])
    yield engine, owner, matched(engine, tokens), tokens
    engine.close()
    owner.close()


def test_who_fetches_from_the_dead_keeps_no_mapping_of_them(offered, monkeypatch):
    """It dies when its memory has been mapped, and the news of that was heard before the mapping is kept."""
    engine, _, hit, _ = offered
    with monkeypatch.context() as patch:
        patch.setattr(engine.market._data.mover, "prepare", lambda *_: patch.setattr(Process, "alive", lambda _: False))
        assert engine.market.fetch(hit, [5, 6]).wait() == 2, "its generations still say that the bytes count"
    assert not engine.market._data.mappings._mapped


def test_a_pool_whose_offers_are_all_dead_is_not_mapped(offered, monkeypatch):
    """It may have left the market: nobody would say so again, and its memory would stay mapped."""
    engine, owner, hit, _ = offered
    owner.market._control.pool.kill()
    asked: list[object] = []
    monkeypatch.setattr(engine.market._data.mover, "prepare", lambda *source: asked.append(source))
    assert engine.market.fetch(hit, [5, 6]).wait() == 0
    assert not asked and not engine.market._data.mappings._mapped


def test_a_pool_that_dies_while_it_is_mapped_is_not_kept(offered, monkeypatch):
    engine, owner, hit, tokens = offered
    monkeypatch.setattr(engine.market._data.mover, "prepare", lambda *_: owner.market._control.pool.kill())
    assert engine.market.fetch(hit, [5, 6]).wait() == 0
    assert not engine.market._data.mappings._mapped
    owner.publish(tokens, [7, 8])
    monkeypatch.undo()
    until(lambda: engine.take(tokens, [5, 6]) == 2)
    assert engine.market._data.mappings._mapped, "the next offers of a pool count as ever"


def test_who_leaves_while_an_old_hit_is_fetched_is_not_mapped_again(offered, monkeypatch):
    """All of its offers are dead before the market is told that it leaves; its epoch is raised last."""
    engine, owner, hit, _ = offered
    assert engine.market.fetch(hit, [5, 6]).wait() == 2
    pools, close = owner.market._control._pools, owner.market._control._pools.close

    def late() -> None:
        until(lambda: not engine.market._data.mappings._mapped)
        assert engine.market.fetch(hit, [5, 6]).wait() == 0
        assert not engine.market._data.mappings._mapped
        close()

    monkeypatch.setattr(pools, "close", late)
    owner.close()


def test_a_fetch_that_nobody_asks_about_keeps_no_memory_of_a_pool_that_has_left(offered, monkeypatch):
    (engine, owner, hit, _), over = offered, threading.Event()
    monkeypatch.setattr(fetch, "_over", lambda started: over.is_set())
    engine.market.fetch(hit, [5, 6])
    mappings = engine.market._data.mappings
    (generations,) = [weakref.ref(each.generations) for each in mappings._mapped.values()]
    owner.close()
    until(lambda: not mappings._mapped)
    assert generations() is not None, "the copy is under way"
    over.set()
    until(lambda: generations() is None)
    until(lambda: not watching())
