"""An engine that cannot join the market when it starts: it serves without, goes on trying, and takes part later."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from kvmarket.errors import AddressError, VersionError
from kvmarket.fingerprint import Fingerprint
from kvmarket.layout.paged import PagedCache
from kvmarket.market.control import ControlHalf
from kvmarket.market.data import DataHalf
from kvmarket.market.offer import Stage
from kvmarket.registry.protocol.messages import PROTOCOL
from tests.other_version import service_of_another_version
from tests.vllm_hook.engines.late_market import NEW, LateMarket, times, until
from tests.vllm_hook.scheduler.fakes import BLOCK, admit, back, prefix, request, step_of
from vllm_hook.metadata import RankMemory
from vllm_hook.scheduler import rejoin
from vllm_hook.scheduler.joining import Joining
from vllm_hook.scheduler.side import SchedulerSide


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, "RETRY_SECONDS", 0.01)


def test_the_engine_serves_without_and_joins_when_it_can():
    market = LateMarket(VersionError("another protocol; run one version"))
    failed = times("vllm_join_failed")
    begun = time.monotonic()
    assert market.start() == "", "for now is not for good"
    assert time.monotonic() - begun < rejoin.START_SECONDS / 2, "it has been told no: there is nothing to wait for"
    assert market.heard == ["VersionError: another protocol; run one version"]
    admit(market.side, request("a", 8), [1, 2])
    step = market.side.dispatch(step_of(new={"a": ([1, 2], 0, 8)}))
    market.back(step.step)
    until(lambda: market.attempts > 3)
    assert times("vllm_join_failed") > failed + 2 and len(market.heard) == 1, "each is counted, and one is told"
    control = market.open()
    admit(market.side, request("b", 8), [3, 4])
    market.back(market.side.dispatch(step_of(new={"b": ([3, 4], 0, 8)})).step)
    assert control.live() == {3: prefix(1), 4: prefix(2)}
    assert market.joined == [control] and "1 rank(s)" in market.side.describe()
    market.side.close()
    assert control.closed


def test_the_first_request_of_an_idle_engine_finds_what_is_there():
    market = LateMarket(AddressError("no service"))
    market.start()
    market.open().found = 2
    assert market.side.match(request("a", 12), 0) == (8, True)


def test_the_start_of_an_engine_waits_for_the_market_and_not_for_ever(monkeypatch: pytest.MonkeyPatch):
    market = LateMarket()
    threading.Timer(0.1, market.gate.set).start()
    market.gate.clear()
    market.start()
    assert market.side._control is market.made[0][1], "a service that starts is waited for"
    monkeypatch.setattr(rejoin, "START_SECONDS", 0.05)
    late = LateMarket()
    late.gate.clear()
    begun = time.monotonic()
    assert late.start() == "" and time.monotonic() - begun < 2
    assert late.heard == ["it has not let this engine in for 0 s"]
    assert late.side.match(request("a", 12), 0) == (0, False) and late.side.dispatch(step_of()).loads == ()
    late.gate.set()
    until(lambda: late.joined)
    late.side.dispatch(step_of())
    assert late.side._control is late.made[0][1]


def test_another_reason_is_told_too():
    market = LateMarket(
        OSError(24, "no descriptor"), OSError(24, "no descriptor"), AddressError("no"), AddressError("2")
    )
    market.start()
    until(lambda: market.attempts > 4)
    doctor = "; run `kvmarket doctor`, it looks for the cause"
    assert market.heard == [f"OSError: [Errno 24] no descriptor{doctor}", "AddressError: no"]
    market.side.close()


class Raising(list[Any]):
    """Whoever is told raises."""

    def append(self, what: Any) -> None:
        super().append(what)
        raise ZeroDivisionError("whoever was told")


def test_whatever_raises_ends_no_thread():
    market, failed = LateMarket(ZeroDivisionError("ours"), MemoryError()), times("vllm_hook_failed")
    market.heard, market.joined = Raising(), Raising()
    market.start()
    until(lambda: market.attempts > 2)
    assert market.heard[0] == "join: ZeroDivisionError: ours; report the traceback logged with this"
    assert times("vllm_hook_failed") >= failed + 3
    market.closed.clear()
    until(lambda: market.made)
    until(lambda: market.side.dispatch(step_of()) and market.side._control)
    assert len(market.made) == 1


def test_what_nobody_wants_any_more_is_closed():
    market = LateMarket(AddressError("no service"))
    market.start()
    untaken = market.open()
    market.side.close()
    assert untaken.closed
    market.side.returned(back(market.side.dispatch(step_of()).step))
    assert market.side._rejoin is not None and market.side._rejoin._joining is None, "it joins again after its end"
    late = LateMarket()
    late.gate.clear()
    joining = Joining(lambda: late.connect([RankMemory(None, None)]), 0.01, late.joined.append, late.heard.append)  # type: ignore[arg-type, return-value]
    assert joining.stop() is None
    late.gate.set()
    until(lambda: late.made and late.made[0][1].closed)
    assert joining.take() is None and late.joined == []


def test_an_engine_that_ends_tries_no_more():
    market = LateMarket(AddressError("no service"))
    market.start()
    market.side.close()
    until(lambda: not any(thread.name == "kvmarket-join" for thread in threading.enumerate()))
    attempts = market.attempts
    time.sleep(0.05)
    assert market.attempts == attempts and market.side._control is None


def no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_no_thread_to_be_had_for_a_moment(monkeypatch: pytest.MonkeyPatch):
    market, start = LateMarket(), threading.Thread.start
    monkeypatch.setattr(rejoin, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    failed, slowly = times("vllm_join_failed"), times("vllm_left_slowly")
    assert market.start() == ""
    for _ in range(3):
        market.back(market.side.dispatch(step_of()).step)
    assert market.side._control is None
    assert market.heard == [rejoin.NO_THREAD] and times("vllm_join_failed") == failed + 1, "with a pause between"
    time.sleep(0.2)
    monkeypatch.setattr(threading.Thread, "start", start)
    market.back(market.side.dispatch(step_of()).step)
    until(lambda: market.joined)
    market.side.dispatch(step_of())
    assert market.side._control is market.made[0][1]
    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    market.back(market.side.dispatch(step_of()).step, NEW)
    assert market.made[0][1].closed and "fail_closed" in market.made[0][1].log, "it is left all the same"
    assert times("vllm_left_slowly") == slowly + 1


def test_what_raises_while_the_market_is_left_ends_no_thread():
    market, failed = LateMarket(), times("vllm_hook_failed")
    market.start()
    market.made[0][1].close = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    market.back(market.side.dispatch(step_of()).step, NEW)
    until(lambda: times("vllm_hook_failed") == failed + 1)


def beside(address: str) -> str:
    """Where engines of this version meet while another one has the address."""
    return f"{address}.{PROTOCOL.decode().strip().rpartition('/')[2]}"


def test_a_service_of_another_version_is_outlived(own_address: str, monkeypatch: pytest.MonkeyPatch):
    cache = PagedCache([torch.zeros(16, 2, BLOCK, 8)], block_size=BLOCK)
    data = DataHalf(cache)

    def connect(ranks: Any) -> ControlHalf:
        stage = Stage(cache.layout, (data.memory,))
        return ControlHalf([stage], Fingerprint.of(model="m"), address=own_address, finds_own=False)

    heard: list[str] = []
    joined: list[ControlHalf] = []
    side = SchedulerSide(BLOCK, 1)
    monkeypatch.setattr(rejoin, "RETRY_SECONDS", 0.1)
    with service_of_another_version(own_address), service_of_another_version(beside(own_address)):
        assert side.join({0: RankMemory(None, None)}, connect, joined.append, heard.append) == ""
        assert side._control is None and heard[0].startswith("VersionError: "), heard
        assert "kvmarket/0" in heard[0] and "one version" in heard[0]
        side.dispatch(step_of())
    until(lambda: joined, 30)
    side.dispatch(step_of())
    assert side._control is joined[0] and "no peer engine yet" in side.describe()
    side.close()
    data.close()
