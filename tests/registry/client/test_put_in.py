"""How the watching thread takes turns: what comes, then what is to be told, and a nap behind each that did a thing."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from kvmarket.registry.client import client
from kvmarket.registry.client.client import Client
from kvmarket.registry.client.turns import NAP_SECONDS, SHORT_SECONDS, STEP_SECONDS, Turns


class Watching(Client):
    """One whose connection has so many turns' worth of news, and which has so many parts to tell."""

    def __init__(self, news: int, parts: int, garbage: int = 0, takes: float = 0.0) -> None:
        self.log: list[str] = []
        self.takes = takes  # seconds of each turn of news
        self._lock, self._closing, self._gone, self._turns = threading.Lock(), threading.Event(), [], Turns()
        self.news, self.parts, self.garbage = news, parts, garbage
        watching = self

        class Feed:
            @property
            def ready(self) -> bool:
                return watching.parts > 0

        self._connection = SimpleNamespace(drain=self._drain, feed=Feed())  # type: ignore[assignment]

        class Space:
            @property
            def collecting(self) -> bool:
                return watching.garbage > 0

            def collect(self) -> None:
                watching.garbage -= 1
                watching.log.append("collect")

        self._replica = SimpleNamespace(space=Space())  # type: ignore[assignment]
        self._on_more = self._tell_more
        self._wake = -1

    def _drain(self, until: float) -> tuple[bool, list[str]]:
        self.news -= self.news > 0
        self.log.append("drain")
        client.time.now += self.takes  # type: ignore[attr-defined]
        return self.news == 0, []

    def _tell_more(self) -> bool:
        assert not self._lock.locked(), "it takes the lock itself"
        told = self.parts > 0
        self.parts -= told
        self.log.append("told" if told else "nothing to tell")
        return told


class Clock:
    """In place of the module `time`: no time passes by itself."""

    def __init__(self, naps: list[float]) -> None:
        self.now, self.sleep = 1000.0, naps.append

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(client, "time", Clock(found))
    monkeypatch.setattr(client.os, "eventfd_write", lambda fd, value: pytest.fail("there is nothing left to do"))
    return found


def test_nothing_to_do_takes_no_nap(naps: list[float]):
    watching = Watching(news=0, parts=0)
    watching._turns.next(1.0)
    watching._put_in()
    assert watching.log == ["drain", "nothing to tell"] and naps == []
    assert watching._turns._behind_since is None, "it is behind no longer"


def test_a_nap_behind_each_turn_of_news(naps: list[float]):
    watching = Watching(news=3, parts=0)
    watching._put_in()
    assert watching.log == ["drain", "nothing to tell"] * 3 and naps == [NAP_SECONDS] * 2


def test_a_nap_behind_each_part_that_was_told(naps: list[float]):
    watching = Watching(news=0, parts=2)
    watching._put_in()
    assert watching.log == ["drain", "told"] * 2 + ["drain", "nothing to tell"] and naps == [NAP_SECONDS] * 2


def test_what_is_collected_counts_as_news(naps: list[float]):
    watching = Watching(news=0, parts=0, garbage=2)
    watching._put_in()
    assert watching.log.count("collect") == 2 and naps == [NAP_SECONDS], "none behind the last: nothing is left"


def test_naps_are_long_while_the_engine_steps(naps: list[float]):
    watching = Watching(news=2, parts=1)
    watching._turns.called(client.time.monotonic())
    watching._put_in()
    assert naps == [STEP_SECONDS] * 2, "one behind the news, one behind what was told"


def test_nobody_waits_for_a_long_turn_and_a_part_in_one(naps: list[float]):
    watching = Watching(news=0, parts=1, takes=2 * SHORT_SECONDS)
    watching._turns.called(client.time.monotonic())
    watching._put_in()
    assert naps == [STEP_SECONDS] * 2 + [NAP_SECONDS], "behind the turn before the part, and behind that"
    naps.clear()
    watching.parts, watching.takes = 1, SHORT_SECONDS / 2
    watching._put_in()
    assert naps == [STEP_SECONDS], "a short turn and a part may follow each other"


def test_a_long_turn_ends_with_a_moment_for_the_engines_thread(naps: list[float]):
    """It may have waited for the lock, and when that is free it waits for the interpreter's."""
    watching = Watching(news=0, parts=0, takes=2 * SHORT_SECONDS)
    watching._turns.called(client.time.monotonic())
    watching._put_in()
    assert watching.log == ["drain", "nothing to tell"] and naps == [NAP_SECONDS]


def test_after_a_while_it_looks_whether_the_service_lives(naps: list[float], monkeypatch: pytest.MonkeyPatch):
    woken: list[int] = []
    monkeypatch.setattr(client.os, "eventfd_write", lambda fd, value: woken.append(fd))
    monkeypatch.setattr(client, "WATCH_SECONDS", 0.0)
    watching = Watching(news=5, parts=0)
    watching._put_in()
    assert woken == [-1], "and goes on with the rest at once"
