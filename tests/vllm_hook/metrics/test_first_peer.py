"""The first peer engine is told of in the log, once."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.fakes import FakeControl
from vllm_hook.metrics import first_peer
from vllm_hook.metrics.first_peer import LOOK_SECONDS, FirstPeer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(first_peer.time, "monotonic", lambda: now[0])
    return now


def test_it_is_said_once_and_looked_for_once_a_second(clock: list[float]):
    said, control = [], FakeControl()
    first = FirstPeer(said.append)
    first.look()
    first.joined(control)  # type: ignore[arg-type]
    assert said == [control], "that the market was joined"
    control.found_peers = 1
    first.look()
    assert said == [control], "not looked for yet"
    clock[0] += LOOK_SECONDS
    control.found_peers = 0
    first.look()
    control.found_peers = 2
    first.look()
    assert said == [control], "looked for a moment ago"
    clock[0] += LOOK_SECONDS
    first.look()
    assert said == [control, control]
    clock[0] += 60.0
    first.look()
    assert len(said) == 2


def test_whoever_met_a_peer_when_he_joined_has_said_so(clock: list[float]):
    said, control = [], FakeControl()
    control.found_peers = 1
    first = FirstPeer(said.append)
    first.joined(control)  # type: ignore[arg-type]
    clock[0] += 60.0
    first.look()
    assert said == [control]
