"""Who owns shared memory is told from others of the same number, and what is mapped is what was named."""

from __future__ import annotations

import os

import msgspec
import numpy as np
import pytest

from kvmarket.errors import NamespaceError, SharedMemoryError
from kvmarket.processes import shared_file
from kvmarket.processes.shared_file import Process, SharedFile, pid_namespace, start_time
from tests.scarcity import descriptors, no_descriptors
from tests.sleepers import Sleeper


@pytest.fixture
def memory():
    fd = os.memfd_create("some memory")
    os.write(fd, bytes(range(64)))
    yield SharedFile.of(fd, 64)
    os.close(fd)


@pytest.fixture
def sleeper():
    made = Sleeper()
    yield made
    made.kill()


def changed(known: Process, **fields: int) -> Process:
    return msgspec.structs.replace(known, **fields)


def test_a_process_is_alive_until_it_is_killed(sleeper):
    assert sleeper.known.alive()
    sleeper.known.check_alive()
    sleeper.kill(reap=False)
    os.waitid(os.P_PID, sleeper.known.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(sleeper.known.pid) == 0, "a zombie"
    assert not sleeper.known.alive()
    sleeper.kill()
    assert start_time(sleeper.known.pid) == 0
    with pytest.raises(SharedMemoryError, match="is gone"):
        sleeper.known.check_alive()


def test_who_is_dead_is_so_without_a_descriptor_too(sleeper):
    sleeper.kill()
    with no_descriptors():
        assert not sleeper.known.alive()


@pytest.mark.parametrize("later", [-1, 1])
def test_another_process_of_the_same_number_is_another_one(sleeper, later):
    other = changed(sleeper.known, start=sleeper.known.start + later)
    assert not other.alive()
    with pytest.raises(SharedMemoryError, match="is gone"):
        other.check_alive()


def test_a_number_means_nothing_in_another_namespace(sleeper):
    """Also where a process has it, and started at that very time."""
    other = changed(sleeper.known, namespace=pid_namespace() + 1)
    with pytest.raises(NamespaceError, match="another PID namespace"):
        other.check_alive()
    gone = changed(other, start=1)
    with pytest.raises(NamespaceError):
        gone.check_alive()


def test_memory_is_not_looked_for_in_another_namespace(memory):
    elsewhere = msgspec.structs.replace(memory, owner=changed(memory.owner, namespace=pid_namespace() + 1))
    with pytest.raises(NamespaceError):
        elsewhere.map()


def test_who_this_process_is_is_asked_anew_in_a_fork():
    assert Process.current() == Process(os.getpid(), start_time(os.getpid()), pid_namespace())
    pid = os.fork()
    if not pid:
        me = Process.current()
        os._exit(0 if me.pid == os.getpid() and me.start == start_time(os.getpid()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_memory_is_mapped_read_only_and_outlives_its_name(memory):
    mapped = memory.map()
    assert mapped[:64] == bytes(range(64))
    with pytest.raises(TypeError):
        mapped[0] = 1
    assert not np.frombuffer(mapped, np.uint8).flags.writeable


@pytest.mark.parametrize("lie", [{"inode": 1}, {"device": 1}, {"nbytes": 65}])
def test_what_is_not_what_was_named_is_not_mapped(memory, lie):
    fields = {name: value + getattr(memory, name) if name != "nbytes" else value for name, value in lie.items()}
    before = descriptors()
    with pytest.raises(SharedMemoryError, match="not what its owner said"):
        msgspec.structs.replace(memory, **fields).map()
    assert descriptors() == before


def test_less_may_be_mapped_than_there_is(memory):
    assert len(msgspec.structs.replace(memory, nbytes=32).map()) == 32


@pytest.mark.parametrize("state", ["Z", "X", "S"])
def test_the_name_of_a_program_may_hold_anything(monkeypatch, state):
    """Fields are counted behind its last parenthesis."""
    line = f"7 (a ) Z 9 (b) {state} " + " ".join(str(number) for number in range(4, 53))

    monkeypatch.setattr(shared_file.Path, "read_text", lambda _path: line)
    assert start_time(7) == (22 if state == "S" else 0)
