"""A thread that is started, and one that is not to be had: the caller knows, and it is counted."""

from __future__ import annotations

import threading

import pytest

from kvmarket import counters
from kvmarket.support.threads import started


def test_it_runs_and_keeps_no_process_alive():
    ran = threading.Event()
    thread = started(ran.set, "a-name", "delayed_by_a_test")
    assert thread is not None and ran.wait(10) and thread.daemon and thread.name == "a-name"
    thread.join()


def test_where_there_is_none_to_be_had_that_is_counted(monkeypatch: pytest.MonkeyPatch):
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    assert started(lambda: None, "a-name", "delayed_by_a_test") is None
    assert counters.snapshot()["delayed_by_a_test{can't start new thread}"] == 1
