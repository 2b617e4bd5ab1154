"""Who starts the service: one at a time, among threads and processes, and no fork in the place of its parent."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError
from kvmarket.registry.client import launch
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service import daemon
from tests.model_engine import until


@pytest.fixture
def place(own_address):
    return Address(own_address)


def end(place: Address) -> None:
    os.kill(ask_status(place).service.pid, signal.SIGTERM)
    until(lambda: not place.service_lives())


def has_turn(place: Address) -> bool:
    with launch._turn(place) as log:
        return log is not None


def elsewhere(function, *arguments):
    """What the function returns in another process."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(function(*arguments)))
    process.start()
    answer = mine.recv() if mine.poll(20) else "nothing"
    process.join()
    return answer


def test_a_turn_is_one_threads_of_one_process(place):
    with launch._turn(place) as log:
        assert log is not None
        assert not has_turn(place), "another thread's"
        assert elsewhere(has_turn, place) is False
        assert elsewhere(has_turn, Address(str(place) + "2")) is True
    assert has_turn(place) and elsewhere(has_turn, place) is True


def test_a_fork_keeps_no_turn(place, monkeypatch):
    """A thread of a host process may fork while another one starts the service."""
    children = []

    def fork(*arguments, **options):
        if not (child := os.fork()):
            time.sleep(60)
            os._exit(0)
        children.append(child)
        return subprocess.CompletedProcess(arguments, 0)

    with monkeypatch.context() as patched:
        patched.setattr(launch.subprocess, "run", fork)
        start_service(place)
    turns = [has_turn(place), elsewhere(has_turn, place)]
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)
    assert turns == [True, True]


@pytest.mark.parametrize("who", ["a thread", "a process"])
def test_who_hangs_while_he_starts_it_is_not_waited_for_long(place, monkeypatch, who):
    """Stopped, say. The service's own lock sees to it that there is one."""
    monkeypatch.setattr(launch, "PATIENCE", 0.3)
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    turn = launch._turn(place)
    hanging = context.Process(target=lambda: [theirs.send(turn.__enter__()), time.sleep(60)])
    if who == "a thread":
        turn.__enter__()
    else:
        hanging.start()
        mine.recv()
    monkeypatch.setattr(
        launch.subprocess, "run", lambda *a, run=subprocess.run, **o: (started.append(1), run(*a, **o))[1]
    )
    started, since = [], time.monotonic()
    start_service(place)
    assert not started
    while not place.service_lives() and time.monotonic() < since + 10:
        start_service(place)
    assert 0.3 < time.monotonic() - since < 10
    end(place)
    if who == "a thread":
        turn.__exit__(None, None, None)
    else:
        hanging.kill()
        hanging.join()
    assert started == [1] and not launch._starting and str(place.log) not in launch._waits


def test_patience_begins_anew_each_time(place, monkeypatch):
    monkeypatch.setattr(launch, "AWAY_SECONDS", 0.2)
    assert launch._waited(place) == 0
    time.sleep(0.1)
    assert launch._waited(place) >= 0.1
    time.sleep(0.25)
    assert launch._waited(place) == 0


def killed_while_starting(place: Address, pipe) -> None:
    with launch._turn(place):
        if not os.fork():
            pipe.send(os.getpid())
            time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_fork_of_a_killed_one_keeps_no_turn(place):
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=killed_while_starting, args=(place, theirs))
    process.start()
    child = mine.recv()
    process.join()
    has = has_turn(place)
    os.kill(child, signal.SIGKILL)
    assert has


def test_a_fork_can_start_a_service_itself(place):
    """Though the thread that was just starting one is not there to give its turn back."""

    def wait(read: int) -> bool:
        os.read(read, 1)
        return has_turn(place)

    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    read, write = os.pipe()
    with launch._turn(place):
        process = context.Process(target=lambda: theirs.send(wait(read)))
        process.start()
    os.write(write, b"x")
    assert mine.recv() is True
    process.join()
    os.close(read)
    os.close(write)


def test_many_start_it_once(place, monkeypatch):
    run, times = subprocess.run, []
    monkeypatch.setattr(launch.subprocess, "run", lambda *a, **o: (times.append(1), run(*a, **o))[1])
    threads = [threading.Thread(target=start_service, args=(place,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start_service(place)
    assert len(times) == 1 and place.service_lives()
    end(place)


def test_a_directory_that_was_removed_meanwhile(place):
    shutil.rmtree(place.socket.parent)
    start_service(place)
    assert place.service_lives()
    end(place)


def test_a_service_that_cannot_be_says_why_in_its_log(tmp_path):
    (tmp_path / "s").mkdir()
    place = Address(tmp_path / "t")
    place.socket = tmp_path / "s" / ("x" * 100)
    with pytest.raises(AddressError, match="see "):
        start_service(place)
    said = place.log.read_text()
    assert "too long" in said and said.count("\n") == 1


def test_a_second_daemon_leaves_it_to_the_first(place):
    start_service(place)
    module = [sys.executable, "-m", daemon.__name__, str(place)]
    done = subprocess.run(module, check=False, cwd=Path(__file__).parents[3], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    end(place)


def test_no_process_left_for_a_service(place, monkeypatch, caplog):
    def refuse() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(daemon.os, "fork", refuse)
    assert daemon.main(str(place)) == 1
    assert "ulimit -u" in caplog.text and not place.service_lives()
