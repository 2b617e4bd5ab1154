"""The first peer engine is told of in the log, once; until then who is near is asked, less and less often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.model_engine import until
from tests.vllm_hook.scheduler.fakes import FakeControl
from vllm_hook.metrics import first_peer
from vllm_hook.metrics.first_peer import FirstPeer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_SECONDS": 0.02, "ASK_SECONDS": 0.1, "LONGEST_ASK": 0.2}.items():
        monkeypatch.setattr(first_peer, name, seconds)


@pytest.fixture
def control() -> Iterator[FakeControl]:
    made = FakeControl()
    yield made
    made.close()
    until(lambda: not looking_out())


def looking_out() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kvmarket-lookout"]


def nothing(_home: object) -> None:
    """In place of asking who is near."""


def test_it_is_said_once_without_a_step_of_the_engine(control: FakeControl):
    said: list[FakeControl] = []
    FirstPeer(said.append, nothing).joined(control)  # type: ignore[arg-type]
    assert said == [control], "that the market was joined"
    time.sleep(0.1)
    assert said == [control]
    control.found_peers = 2
    until(lambda: said == [control, control])
    until(lambda: not looking_out())


def test_whoever_met_a_peer_when_he_joined_has_said_so(control: FakeControl):
    said: list[FakeControl] = []
    control.found_peers = 1
    FirstPeer(said.append, nothing).joined(control)  # type: ignore[arg-type]
    assert said == [control] and not looking_out()


def test_who_is_near_is_asked_less_and_less_often_and_not_once_there_is_a_peer(control: FakeControl):
    asked: list[float] = []

    def ask(home: object) -> None:
        assert home is control.home
        asked.append(time.monotonic())

    begun = time.monotonic()
    FirstPeer(lambda _control: None, ask).joined(control)  # type: ignore[arg-type]
    until(lambda: len(asked) == 4)
    assert [late > least for late, least in zip(pauses(begun, asked), [0.09, 0.18, 0.18, 0.18], strict=True)] == [
        True
    ] * 4
    control.found_peers = 1
    until(lambda: not looking_out())
    assert len(asked) == 4


def pauses(begun: float, times: list[float]) -> list[float]:
    return [late - soon for soon, late in zip([begun, *times], times, strict=False)]


@pytest.mark.parametrize("end", [FakeControl.close, lambda control: setattr(control, "found_peers", 1)])
def test_the_thread_outlives_what_fails_and_ends_with_the_market(
    control: FakeControl, end: Callable[[FakeControl], None], caplog: pytest.LogCaptureFixture
):
    times: list[int] = []

    def fail(_home: object) -> None:
        times.append(1)
        raise ZeroDivisionError

    FirstPeer(lambda _control: None, fail).joined(control)  # type: ignore[arg-type]
    until(lambda: len(times) == 2)
    assert looking_out()
    end(control)
    until(lambda: not looking_out(), seconds=2)
