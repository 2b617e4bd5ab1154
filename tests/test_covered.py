"""What the tests run of each folder, summed up and shown as a table."""

from __future__ import annotations

import json
from pathlib import Path

from bench.tables.pages import coverage
from tests.covered import PACKAGES, ROOT, folder_of, rows


def test_folders_are_at_most_two_names_deep():
    paths = ("kvmarket/errors.py", "kvmarket/kernels/pack.py", "kvmarket/registry/client/client.py")
    assert [folder_of(Path(path)) for path in paths] == ["kvmarket", "kvmarket/kernels", "kvmarket/registry"]
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)


def test_lines_are_summed_and_the_worst_module_is_named(tmp_path: Path):
    found = {Path("kvmarket/a/x.py"): (10, 4), Path("kvmarket/a/b/y.py"): (20, 19), Path("kvmarket/z.py"): (5, 5)}
    made = rows(found)
    first = {"name": "kvmarket/a", "modules": 2, "lines": 30, "covered": 23, "worst": "kvmarket/a/x.py", "missed": 6}
    assert made[0] == first
    assert (made[1]["name"], made[1]["missed"]) == ("kvmarket", 0)
    for machine, kept in (("cpu", made), ("h200x1", made[:1])):
        (tmp_path / f"{machine}-coverage.json").write_text(json.dumps({"machine": machine, "rows": kept}))
    table = coverage(tmp_path / "cpu-coverage.json").splitlines()
    assert table[-2] == "| `kvmarket/a` | 30 | 77 % | 77 % | `kvmarket/a/x.py` (6) |"
    assert table[-1] == "| `kvmarket` | 5 | 100 % |  |  |"
