"""Numbers in the README come from bench/results/, and nowhere else."""

from __future__ import annotations

import json

from bench.report import RESULTS, percentiles
from bench.tables import README, TABLES, fill


def test_the_readme_shows_what_was_measured():
    text = README.read_text()
    for name in TABLES:
        assert f"<!-- bench:{name} -->" in text
    assert fill(text) == text, "run python -m bench.tables"


def test_results_have_the_common_format():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert {"machine", "versions", "commit", "rows"} <= set(result), path.name
        assert path.name.startswith(result["machine"])
        for row in result["rows"]:
            assert {"name", "bytes", "p10", "p50", "p90", "unit", "ceiling", "ratio"} <= set(row), f"{path.name}: {row}"
            assert row["p10"] <= row["p50"] <= row["p90"]


def test_percentiles():
    assert percentiles(range(101)) == {"p10": 10.0, "p50": 50.0, "p90": 90.0}
