"""What a run says at its end of the tests that it skipped."""

from __future__ import annotations

from types import SimpleNamespace

from tests import conftest


def report(nodeid: str, reason: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, longrepr=("file", 1, f"Skipped: {reason}"))


def test_reasons_are_told_once_with_how_many_tests_of_which_file():
    said: list[str] = []
    skipped = [report(f"tests/a/test_x.py::test[{at}]", "no GPU") for at in range(3)]
    skipped += [report("tests/test_y.py::test", "no GPU"), report("tests/test_y.py::other", "not root")]
    conftest.pytest_terminal_summary(SimpleNamespace(stats={"skipped": skipped}, write_line=said.append))
    assert said == [
        "4 skipped: no GPU",
        "    a/test_x.py 3, test_y.py 1",
        "1 skipped: not root",
        "    test_y.py 1",
    ]


def test_a_run_that_skips_nothing_says_nothing():
    said: list[str] = []
    conftest.pytest_terminal_summary(SimpleNamespace(stats={}, write_line=said.append))
    assert said == []
