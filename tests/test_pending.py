"""Publications that wait for the GPU: committed in order once they are ready, dropped when the market closes."""

from __future__ import annotations

import threading
import time
import weakref

import pytest

from kvmarket import counters
from kvmarket.pending import Pending

SOON = 10.0  # seconds; by far more than anything here takes


@pytest.fixture
def pending():
    made = Pending()
    yield made
    made.close()


class Publication:
    """One that is ready when `done` is set, and says into `log` that it was committed."""

    def __init__(self, name, log):
        self.name, self.log = name, log
        self.done, self.looked, self.committed = threading.Event(), threading.Semaphore(0), threading.Event()

    def ready(self):
        self.looked.release()
        return self.done.is_set()

    def commit(self):
        self.log.append(self.name)
        self.committed.set()


def added(pending, *names):
    log = []
    publications = [Publication(name, log) for name in names]
    for publication in publications:
        pending.add(publication.ready, publication.commit)
    return log, publications


def looked_again(publication):
    """Wait until it was asked twice from now on."""
    while publication.looked.acquire(blocking=False):
        pass
    for _ in range(2):
        assert publication.looked.acquire(timeout=SOON)


def test_commits_come_in_order_each_when_it_is_ready(pending):
    log, (a, b, c) = added(pending, "a", "b", "c")
    b.done.set()
    looked_again(a)
    assert log == [], "b is ready, but not its turn"
    a.done.set()
    assert b.committed.wait(SOON) and log == ["a", "b"]
    looked_again(c)
    assert log == ["a", "b"]
    c.done.set()
    assert c.committed.wait(SOON) and log == ["a", "b", "c"]
    more, (d,) = added(pending, "d")
    d.done.set()
    assert d.committed.wait(SOON) and more == ["d"], "after a time with nothing to do"


def test_what_cannot_be_polled_is_dropped_and_counted(pending, monkeypatch):
    monkeypatch.setattr(counters, "_counts", {})
    log, dropped = [], []

    def ready():
        raise RuntimeError("the device is gone")

    pending.add(ready, lambda: dropped.append(True))
    last = Publication("last", log)
    last.done.set()
    pending.add(last.ready, last.commit)
    assert last.committed.wait(SOON) and not dropped
    assert list(counters.snapshot()) == ["offer_dropped{its completion cannot be polled: the device is gone}"]


def test_nothing_is_committed_nor_kept_after_closing():
    pending = Pending()
    log, publications = added(pending, "a", "b")
    looked_again(publications[0])
    pending.close()
    for publication in publications:
        publication.done.set()
    kept = [weakref.ref(publication) for publication in publications]
    del publication, publications
    assert [ref() for ref in kept] == [None, None]
    assert log == []
    pending.close()


def test_threads_begin_with_the_first_and_end_with_closing():
    def running():
        return sum(thread.name == "kvmarket-pending" for thread in threading.enumerate())

    before = running()
    idle = Pending()
    assert running() == before
    idle.close()
    pending = Pending()
    for name in ("a", "b"):
        _, (publication,) = added(pending, name)
        assert running() == before + 1
        publication.done.set()
        assert publication.committed.wait(SOON)
    time.sleep(0.01)  # it waits for more now
    pending.close()
    assert running() == before


def test_waiting_leaves_the_processor_to_others(monkeypatch):
    turns = []

    class Counted(threading.Condition):
        def __enter__(self):
            turns.append(True)
            return super().__enter__()

    monkeypatch.setattr(threading, "Condition", Counted)
    pending = Pending()
    _, (publication,) = added(pending, "a")
    time.sleep(0.1)
    assert 1 < len(turns) < 1000, "polled"
    publication.done.set()
    assert publication.committed.wait(SOON)
    turns.clear()
    time.sleep(0.1)
    assert len(turns) < 10, "nothing to poll"
    pending.close()
