"""What is said of versions of vLLM is what the tests filled in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import RESULTS
from tests.vllm_hook.engines import versions
from vllm_hook.engine import compat

FILE = RESULTS / f"cpu-{versions.SUITE}.json"


def test_tested_are_those_that_passed():
    rows = json.loads(FILE.read_text())["rows"]
    passed = tuple(row["name"].rsplit(".", 1)[0] for row in rows if row["passed"] and not row["failed"])
    assert passed == compat.TESTED


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "version", lambda: "0.99.1")
    assert compat.tested_version() == f"0.99.1 (not tested: tested are {', '.join(compat.TESTED)})"
    monkeypatch.setattr(compat, "version", lambda: f"{compat.TESTED[-1]}.7")
    assert compat.tested_version() == f"{compat.TESTED[-1]}.7 (tested)"


def test_outcomes_are_counted_and_kept(tmp_path: Path):
    file = tmp_path / "junit.xml"
    cases = ("", "<failure/>", "<error/>", "<skipped/>", "")
    file.write_text("<testsuites>" + "".join(f"<testcase>{case}</testcase>" for case in cases) + "</testsuites>")
    assert versions.counts(file) == {"passed": 2, "failed": 2, "skipped": 1}
    rows = [{"name": "0.9.0", "passed": 1}, {"name": "0.10.0", "passed": 1}]
    assert versions.merged(rows[1:], [*rows[:1], {"name": "0.10.0", "passed": 2}]) == [
        {"name": "0.9.0", "passed": 1},
        {"name": "0.10.0", "passed": 2},
    ]


def test_interpreters_are_named_by_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(versions.VARIABLE, "0.26.0=/a/python 0.30.0=/b=c/python")
    found = versions.interpreters()
    assert list(found) == [versions.INSTALLED, "0.26.0", "0.30.0"] and found["0.30.0"] == "/b=c/python"
