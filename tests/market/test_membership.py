"""A market is left once, in the right order, whoever ends it: its user, the collector of garbage, the process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.errors import ClosedError, LayoutError, MisuseError
from kvmarket.market import mappings, membership
from kvmarket.ways import cpu
from tests.model_engine import BLOCK, FACTS, SLOTS, ModelEngine, matched, prompt, until

FINGERPRINT = kvmarket.Fingerprint.of(**FACTS)


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("kvmarket")}


# ---- dropped without close


@pytest.mark.parametrize("cycle", [False, True])
def test_a_market_that_is_dropped_is_left(engine, market_address, cycle):
    before, threads = counters.snapshot(), our_threads()
    dropped, tokens = ModelEngine(market_address), prompt(16, 500 + cycle)
    theirs = our_threads() - threads
    dropped.publish(tokens, [0, 1, 2, 3])
    hit = matched(engine, tokens)
    kept = dropped.market._membership
    if cycle:
        dropped.market.loop = dropped.market
    del dropped.market
    gc.collect()
    assert kept.over
    assert engine.market.fetch(hit, [0, 1, 2, 3]).wait() == 0, "its offers are dead"
    until(lambda: engine.market.match(tokens).blocks == 0)
    new = [key for key, n in counters.snapshot().items() if before.get(key) != n and key.startswith("market_dropped")]
    assert len(new) == 1
    assert theirs and not theirs & our_threads(), "and its threads have ended"


def test_without_the_collector_too(market_address):
    engine = ModelEngine(market_address)
    kept = engine.market._membership
    gc.disable()
    try:
        del engine.market
        assert kept.over
    finally:
        gc.enable()


def test_what_others_of_the_process_read_directly_goes_with_it(market_address):
    engine = ModelEngine(market_address, staging_bytes=1 << 16)
    control = engine.market._control
    pools = {control.pool.id, control.staging.id}
    assert {(pool, 0) for pool in pools} <= mappings._own_arrays.keys()
    engine.close()
    assert not {(pool, 0) for pool in pools} & mappings._own_arrays.keys()


def test_one_that_was_closed_is_not_counted_as_dropped(market_address):
    engine = ModelEngine(market_address)
    before = [n for key, n in counters.snapshot().items() if key.startswith("market_dropped")]
    engine.close()
    del engine
    gc.collect()
    assert [n for key, n in counters.snapshot().items() if key.startswith("market_dropped")] == before


def test_publications_that_wait_do_not_keep_it(market_address):
    engine = ModelEngine(market_address, staging_bytes=1 << 16)
    waiting = []
    engine.market._when_complete = waiting.append  # in the instance: goes with it
    engine.publish(prompt(8, 502), [0, 1])
    engine.publish(prompt(8, 503), [2, 3], staged=True)
    kept = weakref.ref(engine.market)
    assert len(waiting) == 2
    del engine.market
    assert kept() is None


def test_who_drops_it_in_the_middle_of_anything_waits_a_little_only(market_address, monkeypatch):
    monkeypatch.setattr(membership, "DROP_SECONDS", 0.05)
    engine = ModelEngine(market_address)
    kept = engine.market._membership
    with kept.control._lock:  # what a thread may hold in which the collector runs
        start = time.monotonic()
        del engine.market
        assert time.monotonic() - start < 1
        assert not kept.over
    until(lambda: kept.over)


def test_a_process_that_ends_leaves_its_markets(market_address, engine):
    code = f"""
import sys, kvmarket
from tests.model_engine import ModelEngine, prompt
engine = ModelEngine({market_address!r})
engine.publish(prompt(16, 504), [0, 1, 2, 3])
print("up", flush=True)
sys.stdin.readline()
def last(): print(engine.market._membership.over)
import atexit; atexit._run_exitfuncs(); last()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "up\n"
    hit = matched(engine, prompt(16, 504))
    out, _ = process.communicate("\n", timeout=60)
    assert (out, process.returncode) == ("True\n", 0)
    assert engine.market.fetch(hit, [0, 1, 2, 3]).wait() == 0


def test_a_join_that_fails_keeps_nothing(market_address, engine):
    threads, layers = our_threads(), [torch.zeros(SLOTS, 2, BLOCK, 26, dtype=torch.int16)]
    cache = kvmarket.PagedCache(layers, block_size=BLOCK)
    for _ in range(2):
        with pytest.raises(LayoutError, match="fingerprint"):
            kvmarket.connect(cache, FINGERPRINT, address=market_address)
    assert our_threads() == threads
    kvmarket.connect(cache, kvmarket.Fingerprint.of(model="a wider one"), address=market_address).close()


# ---- the order of leaving


def test_offers_are_dead_before_anything_is_waited_for(market_address, engine, monkeypatch):
    """A copy into its own slots may take long: whoever holds a hit must not take bytes meanwhile."""
    leaving, let_on, real = ModelEngine(market_address), threading.Event(), cpu.copy_blocks
    mine, theirs = prompt(16, 505), prompt(16, 506)
    leaving.publish(mine, [0, 1, 2, 3])
    engine.publish(theirs, [0, 1, 2, 3])
    hit, own = matched(engine, mine), matched(leaving, theirs)

    def copy(source, *arguments, **options):
        if source.layout.slots == SLOTS and threading.current_thread().name.startswith("kvmarket-copy"):
            assert let_on.wait(20)
        real(source, *arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = leaving.market.fetch(own, [8, 9, 10, 11])
    closing = threading.Thread(target=leaving.close)
    closing.start()
    pool = leaving.market._control.pool.generations
    until(lambda: pool.epoch > 1)
    assert closing.is_alive() and not moved.done()
    with pytest.raises(ClosedError, match="connect again"):
        leaving.market.match(mine)
    let_on.set()
    closing.join()
    assert engine.market.fetch(hit, [4, 5, 6, 7]).wait() == 0
    assert moved.wait() == 4


def test_nothing_is_offered_once_it_is_being_left(market_address, engine, monkeypatch):
    """A publication that completes while the market is left would outlive its offers."""
    leaving, order = ModelEngine(market_address), []
    for owner, name in (
        (leaving.market._pending, "pending"),
        (leaving.market._control, "control"),
        (leaving.market._data, "data"),
    ):
        real = owner.close

        def close(real=real, name=name):
            order.append(name)
            real()

        monkeypatch.setattr(owner, "close", close)
    leaving.close()
    leaving.close()
    assert order == ["pending", "control", "data"]


def test_threads_that_close_at_once_close_once(market_address):
    engine = ModelEngine(market_address)
    threads = [threading.Thread(target=engine.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.market._membership.over


# ---- forks


def in_a_fork(call) -> str:
    """What `call` returns in a fork of this process."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        said = "raised"
        try:
            said = str(call())
        finally:  # a child must not go on as a test
            os.write(theirs, said.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def refused(call) -> str:
    try:
        call()
    except ClosedError as error:
        return str(error)
    return "not refused"


def test_every_verb_of_a_fork_is_refused(engine):
    tokens = prompt(16, 507)
    engine.publish(tokens, [0, 1, 2, 3])
    hit = matched(engine, tokens)
    before = engine.market._control.generations(range(SLOTS)).tolist()
    for call in (
        lambda: engine.market.match(tokens),
        lambda: engine.market.publish(prompt(8, 508), [8, 9]),
        lambda: engine.market.publish(prompt(8, 508), [8, 9], staged=True),
        lambda: engine.market.fetch(hit, [4, 5, 6, 7]),
        lambda: engine.market.retire([0]),
        lambda: engine.market._data.fetch(hit, [4, 5, 6, 7]),
    ):
        assert "connect in this process" in in_a_fork(lambda call=call: refused(call))
    assert in_a_fork(engine.market.close) == "None"
    assert engine.market._control.generations(range(SLOTS)).tolist() == before
    assert engine.take(tokens, [4, 5, 6, 7]) == 4


def test_a_fetch_under_way_cannot_be_waited_for_in_a_fork(engine, monkeypatch):
    """The thread that copies is not there."""
    tokens, let_on, real = prompt(16, 509), threading.Event(), cpu.copy_blocks
    engine.publish(tokens, [0, 1, 2, 3])
    hit = matched(engine, tokens)
    done = engine.market.fetch(hit, [8, 9, 10, 11])
    assert done.wait() == 4

    def copy(*arguments, **options):
        assert let_on.wait(20)
        real(*arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = engine.market.fetch(hit, [4, 5, 6, 7])
    assert "connect in this process" in in_a_fork(lambda: refused(moved.wait))
    assert "connect in this process" in in_a_fork(lambda: refused(moved.done))
    assert in_a_fork(done.wait) == "4"
    let_on.set()
    assert moved.wait() == 4


def test_a_fork_may_join_with_a_cache_of_its_own(engine, market_address):
    def join_with_ours() -> str:
        try:
            kvmarket.connect(engine.cache, FINGERPRINT, address=market_address)
        except MisuseError as error:
            return str(error)
        return "joined"

    assert "allocate a cache in this process" in in_a_fork(join_with_ours)
    tokens = prompt(16, 510)
    engine.publish(tokens, [0, 1, 2, 3])

    def join_with_its_own() -> int:
        torch.set_num_threads(1)  # OpenMP's threads are not there
        child = ModelEngine(market_address)
        matched(child, tokens)
        count = child.take(tokens, [0, 1, 2, 3])
        child.close()
        return count

    assert in_a_fork(join_with_its_own) == "4"
