"""The fastest cores are found and waited for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from bench.hook import cores
from bench.hook.cores import Cores


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A machine of eight cores; how long the loop takes on each."""
    times = [1.0] * 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(cores, "_seconds_on", times.__getitem__)
    return times


def naps(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> list[float]:
    """How long was slept so far; what happens meanwhile."""
    slept: list[float] = []
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: (slept.append(seconds), then()))
    monkeypatch.setattr(cores.time, "monotonic", lambda: sum(slept))
    return slept


def test_the_fastest_cores_are_found(eight: list[float], monkeypatch: pytest.MonkeyPatch):
    slept = naps(monkeypatch, lambda: None)
    found = Cores(patience=9)
    eight[:] = [1.6, 1.0, 1.7, 1.1, 1.0, 1.6, 1.1, 1.8]
    assert sorted(found.fastest()) == [1, 3, 4, 6] and not slept


def test_what_is_slow_now_is_waited_for(eight: list[float], monkeypatch: pytest.MonkeyPatch):
    found = Cores(patience=9)

    def calm() -> None:
        if len(slept) == 3:
            eight[:] = [1.0] * 8

    slept = naps(monkeypatch, calm)
    eight[:] = [1.6] * 8
    found.fastest()
    assert len(slept) == 3 and found.waited == pytest.approx(sum(slept))


def test_patience_ends(eight: list[float], monkeypatch: pytest.MonkeyPatch):
    found = Cores(patience=1)
    slept = naps(monkeypatch, lambda: None)
    eight[:] = [1.6] * 8
    assert len(found.fastest()) == cores.CORES and 1 <= sum(slept) < 1.3
    before = len(slept)
    found.fastest()
    assert len(slept) == before, "it is all used up"


def test_the_caller_runs_where_it_likes_again():
    before = os.sched_getaffinity(0)
    assert set(Cores(patience=0).fastest()) <= before == os.sched_getaffinity(0)
