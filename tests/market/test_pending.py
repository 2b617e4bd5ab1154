"""Publications that wait for a GPU: what one of them raises costs that one alone."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from kvmarket import counters
from kvmarket.market.pending import Pending
from tests.model_engine import until


@pytest.fixture
def pending():
    made = Pending()
    yield made
    made.close()


def counted(reason: str) -> int:
    return sum(n for key, n in counters.snapshot().items() if key.startswith("offer_dropped") and reason in key)


def fail(*_arguments: object) -> bool:
    raise UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed")


def test_a_commit_that_raises_costs_itself_alone(pending):
    done, before = [], counted("offering it failed")
    pending.add(lambda: True, fail)
    pending.add(lambda: True, lambda: done.append(1))
    until(lambda: done)
    assert counted("offering it failed") == before + 1


def test_a_poll_that_raises_costs_itself_alone(pending):
    done, before = [], counted("cannot be polled")
    pending.add(fail, lambda: done.append(0))
    pending.add(lambda: True, lambda: done.append(1))
    until(lambda: done)
    assert done == [1]
    assert counted("cannot be polled") == before + 1


def test_they_are_committed_in_order_and_not_before_they_are_ready(pending):
    done, ready = [], threading.Event()
    for number in range(5):
        pending.add(ready.is_set if number == 2 else lambda: True, lambda number=number: done.append(number))
    until(lambda: len(done) == 2)
    time.sleep(0.05)
    assert done == [0, 1]
    ready.set()
    until(lambda: len(done) == 5)
    assert done == [0, 1, 2, 3, 4]


def test_what_is_pending_when_it_is_closed_is_never_committed(pending):
    done, ready = [], threading.Event()
    pending.add(ready.is_set, lambda: done.append(1))
    pending.close()
    pending.add(lambda: True, lambda: done.append(2))
    ready.set()
    time.sleep(0.05)
    assert not done


def threads() -> int:
    return sum(thread.name == "kvmarket-pending" for thread in threading.enumerate())


def test_one_thread_does_it_all_and_sleeps_in_between(pending):
    before, done = threads(), []
    assert before == 0
    for number in range(3):
        pending.add(lambda: True, lambda number=number: done.append(number))
        until(lambda number=number: len(done) == number + 1, 5)
        time.sleep(0.05)  # it waits for more
    assert threads() == 1
    pending.close()
    assert threads() == 0


def test_nothing_is_kept_that_comes_when_it_is_closed(pending):
    pending.close()
    held = Held()
    gone = weakref.ref(held)
    pending.add(lambda: True, lambda held=held: None)
    del held
    gc.collect()
    assert gone() is None


def test_no_thread_for_a_moment_delays_it(pending, monkeypatch):
    done = []

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        pending.add(lambda: True, lambda: done.append(1))
    assert any(key.startswith("offer_delayed") for key in counters.snapshot())
    pending.add(lambda: True, lambda: done.append(2))
    until(lambda: done == [1, 2])


class Held:
    pass


def test_what_was_committed_is_let_go(pending):
    held, done = Held(), []
    gone = weakref.ref(held)
    pending.add(lambda: True, lambda held=held: done.append(bool(held)))
    del held
    until(lambda: done)
    gc.collect()
    until(lambda: gone() is None)
