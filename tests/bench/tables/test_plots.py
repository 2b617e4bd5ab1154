"""Plots come from results alone, and the same results give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from bench.tables.plots import draw, load


def test_plots_of_a_few_rows(tmp_path: Path):
    path = tmp_path / "box-transfer.json"
    rows = [
        {"name": "in_place", "bytes": 64 << 20, "ceiling": 172.3, "GBps": 359.1},
        {"name": "co_runner_owner_decode", "bytes": 1, "fetch": "pull_8", "slower_percent": 3.5, "GBps": 99.9},
    ]
    path.write_text(json.dumps({"machine": "box", "versions": {}, "commit": "", "rows": rows}))
    files = draw(path)
    assert [file.name for file in files] == ["box-transfer-rate.svg", "box-transfer-co-runner.svg"]
    first = [file.read_bytes() for file in files]
    assert all(file.startswith(b"<?xml") for file in first)
    assert [file.read_bytes() for file in draw(path)] == first


def test_nothing_measured_is_no_error(tmp_path: Path):
    path = tmp_path / "box-transfer.json"
    path.write_text(json.dumps({"machine": "box", "versions": {}, "commit": "", "rows": []}))
    assert all(file.exists() for file in draw(path))


def test_one_line_for_each_mode_that_was_served():
    rows = [
        {"load": "chat", "mode": mode, "rate": rate, "p50": 2.0 * rate, "p99": 9.0 * rate, "requests_per_s": 0.5 * rate}
        for mode in ("hook on", "hook off")
        for rate in (8.0, 4.0)
    ]
    times, done = load([*rows, {"load": "retrieval", "mode": "hook on", "p50": 1.0}]).axes
    assert [line.get_label() for line in times.lines] == ["hook on", "hook on, p99", "hook off", "hook off, p99"]
    assert times.lines[1].get_xydata().tolist() == [[4.0, 36.0], [8.0, 72.0]]
    assert done.lines[1].get_xydata().tolist() == [[4.0, 2.0], [8.0, 4.0]]
