"""Counters: what is counted under which name, and what is logged, once."""

from __future__ import annotations

import pytest

from kvmarket import counters


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch):
    monkeypatch.setattr(counters, "_counts", {})


def test_counts_add_up_by_name_and_reason():
    counters.add("blocks")
    counters.add("blocks", 3)
    counters.add("blocks", reason="late")
    counters.add("blocks", 2, reason="late", detail="17 bytes")
    assert counters.snapshot() == {"blocks": 4, "blocks{late}": 3}


def test_a_snapshot_is_a_copy():
    counters.add("blocks")
    counters.snapshot()["blocks"] = 7
    assert counters.snapshot() == {"blocks": 1}


def test_each_reason_is_logged_once_and_a_detail_there_alone(caplog):
    counters.add("blocks")
    assert caplog.messages == []
    counters.add("blocks", reason="late", detail="17 bytes")
    counters.add("blocks", reason="late", detail="18 bytes")
    counters.add("blocks", reason="lost")
    ending = "(counted from now on, logged once)"
    assert caplog.messages == [f"blocks: late: 17 bytes {ending}", f"blocks: lost {ending}"]
