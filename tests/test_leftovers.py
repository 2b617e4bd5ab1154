"""What a kill leaves in /dev/shm is removed by whoever comes next, and nothing else is."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from kvmarket import leftovers
from kvmarket.cli.top import ask_status
from kvmarket.registry.address import Address
from kvmarket.shared_file import Process
from tests.model_engine import Peer, until


def _killed_while_sharing(pipe) -> None:
    leftovers.mark()
    (leftovers.FOLDER / f"torch_{os.getpid()}_1_1").write_bytes(b"a cache")
    pipe.send(os.getpid())
    time.sleep(60)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "FOLDER", tmp_path)
    return tmp_path


def test_what_the_killed_left_goes_and_nothing_else(folder):
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_killed_while_sharing, args=(theirs,))
    process.start()
    pid = mine.recv()
    others = [folder / f"torch_{pid + 1}_1_1", folder / "somebody's"]
    for other in others:
        other.touch()
    leftovers.sweep()
    assert len(list(folder.iterdir())) == 4, "it still lives"
    process.kill()
    process.join()
    leftovers.sweep()
    assert sorted(folder.iterdir()) == sorted(others)


def test_a_mark_lasts_as_long_as_its_process(folder):
    leftovers.mark()
    leftovers.mark()
    (path,) = folder.iterdir()
    leftovers.sweep()
    assert path.exists()
    leftovers._unmark(path, Process.current().pid + 1)  # a fork ends
    assert path.exists()
    leftovers._unmark(path, Process.current().pid)
    assert not path.exists()


def test_what_a_killed_engine_left_in_shared_memory_is_removed_soon(market_address):
    """Also where its connection had ended before it was dead."""
    peer = Peer(market_address)
    marks = lambda: [*Path("/dev/shm").glob(f"kvmarket-shares-*-{peer.pid}-*")]  # noqa: E731
    assert marks()
    peer.hang_up()
    until(lambda: not ask_status(Address(market_address)).members, seconds=1)
    peer.kill()
    until(lambda: not marks(), seconds=10)
