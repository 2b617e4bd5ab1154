"""Whose alone the folder of a market is, in a real container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmarket.cli.doctor import machine
from kvmarket.processes.numbers import HOST
from kvmarket.registry.protocol import folder
from tests.container import apart

SAYS = """import sys, pathlib, kvmarket.registry.protocol.folder as folder
place = pathlib.Path(sys.argv[1])
print(folder.whose(place), folder.said_to_who_is_alone(place), sep=chr(10))"""
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(apart() is None, reason="this user may make no namespaces")
@pytest.mark.parametrize(
    ("mounts", "path", "says"),
    [
        ("mount -t tmpfs none /var/tmp", "/var/tmp/kvmarket-1", "in this container's own file system"),
        ("mount -t tmpfs none /var/tmp && mkdir /var/tmp/s && mount -t tmpfs none /var/tmp/s", "/var/tmp/s/m", ""),
    ],
)
def test_a_container_with_a_tmp_of_its_own(mounts: str, path: str, says: str):
    """In /var/tmp: the checkout may lie in /tmp."""
    command = [*(apart() or ()), "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-c", SAYS, path]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    whose_alone, sentence = shown.stdout.splitlines()
    assert whose_alone == says
    assert sentence.startswith(f"the market's folder {path} is {says}; " if says else "engines in other containers")


def test_on_the_host_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "pid_namespace", lambda: HOST)
    assert folder.said_to_who_is_alone(tmp_path) == ""


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        folder.whose(tmp_path / "loop")
    monkeypatch.setattr(folder, "pid_namespace", lambda: HOST)
    assert folder.said_to_who_is_alone(tmp_path / "loop") == ""
    monkeypatch.setattr(folder, "_MOUNTS", tmp_path / "unreadable")
    assert machine._folder().level == "note" and "cannot be looked at" in machine._folder().found
