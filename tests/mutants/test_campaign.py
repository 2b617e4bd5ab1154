"""The command on a toy: known mutants are killed, also those that only another process sees; untested lines survive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import harmless, report
from tests.mutants.__main__ import main
from tests.mutants.mutant import mutants
from tests.mutants.table import Table, TableError, changed_lines

ROOT = Path(__file__).resolve().parent.parent.parent
TOY = """
def first(numbers):
    if not numbers:
        return None
    return numbers[0]


def untested(number):
    return number + 1


def elsewhere():
    return "as it is" if 1 == 1 else "changed"


def loop(count):
    while count:
        count -= 1
    return count
"""
TESTS = """
import subprocess, sys
import toy

def test_first():
    assert toy.first([1, 2]) == 1
    assert toy.first([]) is None

def test_elsewhere():
    subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
    code = "import toy; print(toy.elsewhere())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "as it is\\n"

def test_loop():
    assert toy.loop(3) == 0
"""
HARMLESS = """
[[harmless]]
module = "toy.py"
function = "untested"
operator = "returned"
statement = "return number + 1"
becomes = "return None"
reason = "nobody calls it"
"""
SURVIVORS = {"return number - 1", "return number + 2", "return number + 0"}


@pytest.fixture
def tree(tmp_path):
    """A tree with one module, its tests, a table and a list of harmless mutants."""
    (tmp_path / "toy.py").write_text(TOY)
    seconds = 100_000_000 + os.getpid()  # a command line of this test's own
    (tmp_path / "check_toy.py").write_text(TESTS.replace("{seconds}", str(seconds)))
    (tmp_path / "targets.toml").write_text('[tests]\n"toy.py" = ["check_toy.py"]\n')
    (tmp_path / "harmless.toml").write_text(HARMLESS)
    yield tmp_path
    lines = [line.read_bytes() for line in Path("/proc").glob("[0-9]*/cmdline") if line.exists()]
    assert f"sleep\0{seconds}\0".encode() not in lines, "what tests left behind is ended with them"


def arguments(tree, *more):
    """The command line that takes everything from the tree."""
    paths = ("--root", tree, "--table", tree / "targets.toml", "--harmless", tree / "harmless.toml")
    return [str(part) for part in (*paths, *more)]


def command(tree, *more):
    """Run the command in a process of its own, from which it can fork."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *filter(None, sys.path)))}
    line = [sys.executable, "-m", "tests.mutants", *arguments(tree, *more)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def listed(capsys, tree, *more):
    """What the command lists."""
    assert main(arguments(tree, "--list", *more)) == 0
    return capsys.readouterr().out


def test_a_campaign(tree):
    run = command(tree, "--seconds", "1", "--jobs", "3", "--write", tree / "report.json")
    assert run.returncode == 1, run.stderr
    rows = json.loads((tree / "report.json").read_text())["mutants"]
    found = {outcome: {row["becomes"] for row in rows if row["outcome"] == outcome} for outcome in report.OUTCOMES}
    assert found["survived"] == SURVIVORS
    assert all(f"+ {line}" in run.stdout for line in SURVIVORS)
    assert found["harmless"] == {"return None"}
    assert "return 'as it is' if 1 != 1 else 'changed'" in found["killed"], "only another process runs it"
    assert {"return numbers[1]", "if numbers:", "while not count:"} < found["killed"]
    assert found["hang"] == {"count += 1", "count -= 2", "count -= 0", "pass"}
    assert {row["by"] for row in rows if row["becomes"] == "if numbers:"} == {"check_toy.py::test_first"}


def test_entries_that_are_stale(tree, capsys):
    assert main(arguments(tree, "--only", "nothing of this name")) == 0
    (tree / "harmless.toml").write_text(HARMLESS.replace("return number + 1", "return number + 2"))
    assert main(arguments(tree, "--only", "nothing of this name")) == 1
    assert "is no more" in capsys.readouterr().out


def test_tables_that_do_not_fit_the_tree(tree, capsys):
    (tree / "targets.toml").write_text('[tests]\n"gone.py" = ["check_toy.py"]\n"toy.py" = ["check_gone.py"]\n')
    assert main(arguments(tree)) == 2
    assert "gone.py, check_gone.py" in capsys.readouterr().err
    (tree / "targets.toml").write_text('[tests]\n"toy.py" = []\n')
    assert main(arguments(tree)) == 2
    assert "no tests of toy.py" in capsys.readouterr().err


def test_tests_that_do_not_pass_anyway(tree):
    (tree / "toy.py").write_text(TOY.replace("[0]", "[1]"))
    run = command(tree, "--sample", "1")
    assert run.returncode == 2 and "do not pass without a mutant" in run.stderr


def test_samples_and_names_are_the_same_each_time(tree, capsys):
    sample = listed(capsys, tree, "--sample", "5")
    assert sample == listed(capsys, tree, "--sample", "5") and sample.count("toy.py:") == 5
    assert listed(capsys, tree, "--sample", "5", "--seed", "2") != sample
    assert listed(capsys, tree).count("toy.py:") == len(mutants("toy.py", TOY))
    assert listed(capsys, tree, "--only", "toy.py:9:").count("toy.py:") == 4


def test_lines_changed_since_a_commit(tree, capsys):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=tree, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (tree / "toy.py").write_text(TOY.replace("number + 1", "number + 3"))
    assert changed_lines(tree, "HEAD") == {"toy.py": {9}}
    assert listed(capsys, tree, "--since", "HEAD") == listed(capsys, tree, "--only", "toy.py:9:")
    with pytest.raises(TableError, match="no such revision"):
        changed_lines(tree, "no such revision")


def test_a_list_of_harmless_mutants_says_why(tmp_path):
    file = tmp_path / "harmless.toml"
    file.write_text(HARMLESS)
    (key, reason), *_ = harmless.read(file).items()
    assert reason == "nobody calls it" and tuple(key)[1:3] == ("untested", "returned")
    file.write_text(harmless.entry(key, "another reason"))
    assert harmless.read(file) == {key: "another reason"}
    for wrong in (harmless.entry(key), HARMLESS + HARMLESS, "[[harmless]]\nmodule = 1", HARMLESS + "more = 1"):
        file.write_text(wrong)
        with pytest.raises(TableError):
            harmless.read(file)


def test_the_table_of_this_tree_fits_it():
    here = Path(__file__).parent
    table = Table.read(here / "targets.toml", ROOT)
    every = [m for module in table.tests for m in mutants(module, (ROOT / module).read_text(encoding="utf-8"))]
    assert not harmless.stale(harmless.read(here / "harmless.toml"), (m.key for m in every))
