"""The tables of the hook show what was measured, and leave out what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.tables.hook_tables import outputs, serving, throughput, tiers, ttft


def saved(tmp_path: Path, rows: list[dict[str, Any]], versions: dict[str, str] | None = None, **more: Any) -> Path:
    path = tmp_path / "box-suite.json"
    found = {"versions": {"vllm": "0.26.0"} | (versions or {}), "gpu": "GPU", "repeats": 20}
    found |= {"prompts": 4, "copy_GBps": 393.3, **more}
    path.write_text(json.dumps(found | {"rows": rows}))
    return path


def test_a_column_that_was_not_measured_is_left_out(tmp_path: Path):
    time = {"p10": 1.0, "p50": 2.0, "p90": 3.0}
    rows = [
        {"column": "prefill", "tokens": 10_000, **time},
        {"column": "peer's pool", "tokens": 10_000, **time, "goal": 16.43, "extra": 4.31},
        {"column": "prefill", "tokens": 1000, **time},
    ]
    text = ttft(saved(tmp_path, rows, graphs="FULL", graphs_lmcache="FULL"))
    assert "| prefill | peer's pool | goal for the peer's pool | longer than own, round by round |" in text
    assert "| 1,000 | 2.0 (1.0 – 3.0) |  |  |  |" in text
    assert "| 10,000 | 2.0 (1.0 – 3.0) | 2.0 (1.0 – 3.0) | 16.4 | 4.3 |" in text
    assert "LMCache was not installed" in text and "CUDA graphs (FULL)" in text
    rows.append({"column": "host memory (LMCache)", "tokens": 1000, **time})
    text = ttft(saved(tmp_path, rows, {"lmcache": "0.5.2"}, graphs="FULL", graphs_lmcache="PIECEWISE"))
    assert "CUDA graphs (FULL, LMCache's PIECEWISE)" in text
    assert "LMCache 0.5.2" in text and "not installed" not in text
    assert "| 1,000 | 2.0 (1.0 – 3.0) |  | 2.0 (1.0 – 3.0) |  |  |" in text


def test_throughput_and_what_runs_meanwhile(tmp_path: Path):
    rate = {"name": "on over off", "unit": "ratio", "p10": 0.98, "p50": 0.995, "p90": 1.01}
    alone = {"name": "TPOT", "unit": "ms", "mode": "none", "p50": 9.0, "slower_percent": 0.0, "gap_p50": 8.0}
    fetched = {**alone, "mode": "fetched", "p50": 9.123, "slower_percent": 1.25, "gap_p50": 8.2, "gap_p99": 20.0}
    text = throughput(saved(tmp_path, [rate, alone | {"gap_p99": 19.0}, fetched]))
    assert "| on over off | 0.98 | 0.995 | 1.01 |" in text
    assert "| none | 9 | 0.0 % | 8 | 0.0 % | 19 |" in text and "| fetched | 9.12 | 1.2 % | 8.2 | 2.5 % | 20 |" in text
    assert "meanwhile" not in throughput(saved(tmp_path, [rate]))


def test_one_line_for_each_run_and_mode(tmp_path: Path):
    run = {"mode": "hook on", "requests_per_s": 3.214, "p50": 50.0, "p99": 90.0, "computed_share": 0.126}
    run |= {"tpot_p50": 9.5}
    asked = {"load": "retrieval", "engines": 2, "window": 8}
    text = serving(saved(tmp_path, [run | {"load": "chat", "rate": 16.0}, run | asked]))
    assert "| chat, 16 requests/s | hook on | 3.21 | 50 | 90 | 9.5 | 12.6 % |" in text
    assert "| retrieval, 8 at a time on each of 2 engines | hook on |" in text
    assert "times" not in text
    off = run | {"mode": "hook off", "requests_per_s": 1.607}
    assert "2.00 times as many with 8 at a time" in serving(saved(tmp_path, [run | asked, off | asked]))
    counts = {"mode": "bf16", "answers": 600, "tokens_imported": 250_000, "same": 599, "spread": 3}
    assert "| bf16 | 600 | 250,000 | 599 | 3 |" in outputs(saved(tmp_path, [counts]))


def test_tiers_by_their_rate(tmp_path: Path):
    row = {"load": "16K", "p50": 2.0, "first_p50_ms": 495.6, "first_p90_ms": 1138.9, "computed_share": 0.638}
    rows = [row | {"mode": "lender, host", "p50": 7.0}, row | {"mode": "no tier"}]
    settings = {"loads": [{"name": "16K", "window": 4, "outgrow": 3}], "own_gb": 12.0, "repeats": 2, "requests": 32}
    text = tiers(saved(tmp_path, rows, settings=settings | {"gpus": [0]}, note="At noon."))
    what = "16K, 4 at a time, documents 3 times the cache"
    first, second = text.splitlines()[-2:]
    assert first == f"| {what} | no tier | 2 | 1.00 | 496 | 1139 | 63.8 % |"
    assert second == f"| {what} | lender, host | 7 | 3.50 | 496 | 1139 | 63.8 % |"
    assert "own cache of 12 GB, the lender on the engine's own GPU; median of 2 runs of 32 requests. At noon." in text
    assert "the second GPU" in tiers(saved(tmp_path, rows, settings=settings | {"gpus": [0, 1]}))
