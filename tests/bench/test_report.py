"""What a file of results says was measured."""

from __future__ import annotations

import json
import subprocess

from bench import report


def test_the_commit_and_whether_the_sources_are_those_of_it(tmp_path, monkeypatch):
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(report, "RESULTS", results)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init")
    (tmp_path / "source.py").write_text("a = 1\n")
    git("add", "-A")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    path = report.write("machine", "suite", [])
    assert json.loads(path.read_text())["commit"] == report.commit() == head, "results are no sources"
    (tmp_path / "source.py").write_text("a = 2\n")
    assert report.commit() == head + "+"
    assert json.loads(report.write("machine", "suite", [], commit="known").read_text())["commit"] == "known"
