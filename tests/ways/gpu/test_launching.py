"""The thread that launches: in order, errors come out, closing waits."""

from __future__ import annotations

import sys
import threading

import pytest

from kvmarket.ways.gpu.launching import LaunchThread


def test_in_order_and_errors_come_out():
    thread, seen, gate = LaunchThread(), [], threading.Event()

    def fail() -> None:
        seen.append("fail")
        raise RuntimeError("out of memory")

    first = thread.submit(gate.wait)
    second, third = thread.submit(fail), thread.submit(lambda: seen.append("after"))
    assert thread.busy() and not first.over() and not third.over()
    gate.set()
    third.wait()
    assert seen == ["fail", "after"] and first.over() and not first.failed()
    assert second.over() and second.failed()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            second.wait()
    assert not thread.busy()
    thread.close()
    thread.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_fails_what_it_did_not_launch():
    thread, gate = LaunchThread(), threading.Event()

    def die() -> None:
        gate.wait()
        raise SystemExit  # ends the thread, as what nobody foresaw would

    first, second = thread.submit(die), thread.submit(lambda: None)
    gate.set()
    for launch in (first, second):
        with pytest.raises(RuntimeError, match="ended"):
            launch.wait()
        assert launch.over() and launch.failed()
    with pytest.raises(RuntimeError, match="has ended"):
        thread.submit(lambda: None)
    thread.close()


def test_what_a_launch_holds_goes_with_it():
    thread = LaunchThread()
    held = set()
    thread.submit(held.copy).wait()
    assert sys.getrefcount(held) == 2
    thread.close()


def test_closing_lets_what_was_submitted_end():
    thread, seen = LaunchThread(), []
    for number in range(100):
        thread.submit(lambda number=number: seen.append(number))
    thread.close()
    assert seen == list(range(100))
