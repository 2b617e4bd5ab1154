"""No descriptor for a moment: counted, tried again, and nothing is lost."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from kvmarket import counters
from kvmarket.errors import KVMarketError, SharedMemoryError
from kvmarket.pool import Generations
from kvmarket.processes import shared_file
from kvmarket.processes.shared_file import Process, SharedFile, start_time
from tests.model_engine import ModelEngine, matched, prompt, until
from tests.scarcity import descriptors, no_descriptors


def counted(name: str) -> int:
    return sum(times for key, times in counters.snapshot().items() if key.startswith(name))


def visible(engine: ModelEngine, tokens: list[int]) -> None:
    """The peer's offers have come, though nothing of the pool was looked at."""
    client = engine.market._control._client
    until(lambda: client.match(np.array(tokens, np.int32), "", 0, ())[0])


@pytest.mark.parametrize("left", [0, 1])
def test_a_match_without_descriptors_finds_nothing_and_the_next_one_all(engine, peer, left):
    tokens = prompt(16, 200 + left)
    peer.publish(tokens, [0, 1, 2, 3])
    visible(engine, tokens)
    before = counted("pool_passed_over")
    with no_descriptors(left):
        assert engine.market.match(tokens).blocks == 0
        assert engine.market.match(tokens).blocks == 0
    assert counted("pool_passed_over") == before + 2
    assert engine.market.match(tokens).blocks == 4
    assert engine.take(tokens, [0, 1, 2, 3]) == 4


def test_a_fetch_without_descriptors_brings_nothing_and_a_later_one_all(engine, peer):
    tokens = prompt(16, 203)
    peer.publish(tokens, [0, 1, 2, 3])
    hit = matched(engine, tokens)
    with no_descriptors():
        for _ in range(5):
            assert engine.market.fetch(hit, [0, 1, 2, 3]).wait() == 0
        assert engine.market.match(tokens).blocks == 0, "passed over for a while, so that others are found"
    until(lambda: engine.market.match(tokens).blocks == 4, 5)
    assert engine.take(tokens, [0, 1, 2, 3]) == 4


def test_another_pool_with_the_same_blocks_is_used_meanwhile(engine, peer, market_address):
    tokens = prompt(16, 204)
    own = ModelEngine(market_address)  # mapped without descriptors, being of this process
    peer.publish(tokens, [0, 1, 2, 3])
    (pool,) = matched(engine, tokens).pools
    own.publish(tokens, [0, 1, 2, 3])
    control = engine.market._control
    until(lambda: control._client.match(np.array(tokens, np.int32), "", 0, {pool})[0])
    for _ in range(3):
        control.avoid(pool, for_now=True)
    assert list(matched(engine, tokens).pools) == [own.market._control.pool.id]
    own.close()


def test_a_living_process_is_not_taken_for_dead(peer):
    process = Process(peer.pid, start_time(peer.pid), shared_file.pid_namespace())
    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            start_time(peer.pid)
        assert process.alive()
        process.check_alive()
    peer.kill()
    with no_descriptors():
        assert not process.alive()


def test_a_process_of_another_user_is_alive(monkeypatch):
    def refuse(_pid, _signal):
        raise PermissionError

    def unreadable(_pid):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(shared_file, "start_time", unreadable)
    assert Process(1, 5, 0).alive()


@pytest.mark.parametrize("left", [0, 1])
def test_what_cannot_be_mapped_says_what_to_do(left):
    generations = Generations(4)
    file = generations.file
    with no_descriptors(left), pytest.raises(SharedMemoryError, match="ulimit -n"):
        file.map()
    generations.close()
    with pytest.raises(SharedMemoryError, match="same user"):
        file.map()


def test_memory_that_cannot_be_mapped_is_an_error_of_ours(monkeypatch):
    generations = Generations(4)

    def refuse(*_arguments, **_options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    before = descriptors()
    with pytest.raises(SharedMemoryError, match="tried again"):
        SharedFile.map(generations.file)
    assert descriptors() == before
    generations.close()


def test_generations_without_a_descriptor_say_what_to_do():
    with no_descriptors(), pytest.raises(SharedMemoryError, match="ulimit -n"):
        Generations(4)


def test_who_this_process_is_needs_a_descriptor_only_once(monkeypatch):
    me = Process.current()
    assert me.pid == os.getpid() and me.start == start_time(os.getpid()) > 0
    with no_descriptors():
        assert Process.current() == me
    shared_file._current.cache_clear()
    with no_descriptors(), pytest.raises(SharedMemoryError, match="ulimit -n"):
        Process.current()
    assert Process.current() == me


def test_an_engine_joins_when_there_are_descriptors_again(market_address):
    shared_file._current.cache_clear()
    with no_descriptors(), pytest.raises(SharedMemoryError):
        ModelEngine(market_address)
    engine = ModelEngine(market_address)
    engine.close()


def test_who_cannot_join_for_want_of_descriptors_is_told_and_leaks_none(own_address):
    """Whichever is the one that is missing; the market is joined as soon as there are enough."""
    other = ModelEngine(own_address)  # keeps the service alive
    ModelEngine(own_address).close()  # what is imported or opened once is
    before, joined = descriptors(), 0
    for left in range(40):
        try:
            with no_descriptors(left):
                engine = ModelEngine(own_address)
            engine.close()
            del engine
            joined += 1
        except KVMarketError as error:
            assert "ulimit -n" in str(error), error
        assert descriptors() <= before, f"with {left}"
        if joined > 2:
            other.close()
            return
    raise AssertionError("forty descriptors are not enough to join a market")
