"""In containers processes get numbers that chance picks; in the host's own namespace nothing happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmarket.processes import numbers
from tests.container import apart

CODE = """
import os, random, subprocess, sys
from kvmarket.processes import numbers
random.SystemRandom.randrange = lambda self, most: most // 4
passed = numbers.scatter()
child = subprocess.Popen(["true"])
child.wait()
print(passed, os.getpid(), child.pid)
"""


def test_nothing_happens_where_numbers_are_unique(monkeypatch):
    monkeypatch.setattr(numbers, "pid_namespace", lambda: numbers.HOST)
    monkeypatch.setattr(numbers.threading, "Thread", lambda **_: pytest.fail("no thread is needed"))
    assert numbers.scatter() == 0


@pytest.mark.skipif(apart() is None, reason="this user may make no namespaces")
def test_the_next_process_of_a_container_has_another_number():
    command = [*(apart() or ()), sys.executable, "-c", CODE]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    passed, own, child = map(int, run.stdout.split())
    assert passed == numbers.MOST_THREADS // 4 and child > own + passed


def test_no_thread_is_no_reason_to_fail(monkeypatch):
    def start(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(numbers, "pid_namespace", lambda: 7)
    monkeypatch.setattr(numbers.random.SystemRandom, "randrange", lambda self, most: 3)
    monkeypatch.setattr(numbers.threading.Thread, "start", start)
    assert numbers.scatter() == 0
