"""A thread of ours outlives an exception of its work, and says so."""

from __future__ import annotations

import pytest

from kvmarket import counters
from kvmarket.support import supervised
from kvmarket.support.supervised import survived


def test_an_exception_is_counted_and_logged_and_does_not_leave(caplog, monkeypatch):
    monkeypatch.setattr(supervised.Survived, "shown", 0)
    name = "thread_survived{a test: UnicodeEncodeError}"
    before = counters.snapshot().get(name, 0)
    for _ in range(supervised._SHOWN + 2):
        with survived("a test") as turn:
            "\ud83d".encode()
        assert turn.failed
    assert counters.snapshot()[name] == before + supervised._SHOWN + 2
    shown = [record for record in caplog.records if record.exc_info]
    assert len(shown) == supervised._SHOWN, "the first few with their traceback"


def test_what_goes_well_is_not_counted():
    before = counters.snapshot()
    with survived("nothing") as turn:
        pass
    assert not turn.failed
    assert counters.snapshot() == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_passes_through(kind):
    with pytest.raises(kind), survived("a test"):
        raise kind
