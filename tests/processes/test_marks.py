"""A mark says that its process lives, in whatever namespace, and for no fork of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kvmarket import counters
from kvmarket.processes import leftovers, marks
from kvmarket.processes.shared_file import Process
from kvmarket.transport import cuda_ipc, shm
from tests.model_engine import until
from tests.sharing import BYTES, ELSEWHERE, Sharer, allocate, names, own_folder, share, torch_file


@pytest.fixture
def folder(monkeypatch):
    with own_folder(monkeypatch) as folder:
        yield folder


def test_we_may_be_the_other_one_with_the_same_number(folder, monkeypatch):
    """Then our own mark must not be opened either: closing it would end its lock."""
    sharer = Sharer(allocate)
    twin = Process(sharer.pid, 17, ELSEWHERE)
    with monkeypatch.context() as patched:
        patched.setattr(Process, "current", classmethod(lambda cls: twin))
        leftovers.mark()
        sharer.kill()
        before = names(folder)
        leftovers.sweep()
        assert names(folder) == before
        assert elsewhere_is_locked(folder / f"{marks.PREFIX}{ELSEWHERE}-{sharer.pid}-17")


def elsewhere_is_locked(path: Path) -> bool:
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    return "BlockingIOError" in done.stderr


def test_memory_that_has_lost_its_name_is_noted_no_more(folder):
    with marks.creating(BYTES):
        (noted,) = (path for path in folder.iterdir() if b"creating" in path.read_bytes())
    os.lseek(marks._marks[folder], 0, os.SEEK_SET)
    assert os.read(marks._marks[folder], 1000) == b"locked\n", noted


def test_a_fork_does_not_keep_what_its_parent_left(folder):
    sharer = Sharer(share, fork_and_forget)
    sharer.kill()
    leftovers.sweep()
    left = names(folder) - {"fork"}
    os.kill(int((folder / "fork").read_text()), signal.SIGKILL)
    assert not left


def fork_and_forget() -> None:
    """Wait in a fork that a library makes, of which Python does not know."""
    child = ctypes.CDLL(None).fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    (marks.FOLDER / "fork").write_text(str(child))


def test_a_fork_has_a_mark_of_its_own(folder):
    leftovers.mark()
    sharer = Sharer(share)
    marked = [name for name in names(folder) if name.startswith(marks.PREFIX)]
    assert len(marked) == 2
    held = [fd.readlink().name for fd in Path(f"/proc/{sharer.pid}/fd").iterdir()]
    assert len(set(held) & set(marked)) == 1, "it has not kept ours"
    sharer.kill()
    leftovers.sweep()
    assert len(names(folder)) == 1, "ours"


def test_a_fork_while_another_thread_makes_a_mark(folder):
    with marks._lock:
        sharer = Sharer(share)
    sharer.kill()


def test_a_file_is_noted_once(folder):
    """torch has one for all that a process exports."""
    share()
    share()
    assert os.pread(marks._marks[folder], 1000, 0).count(b"file") == 1


def test_lines_of_a_mark_follow_each_other_without_a_gap(folder):
    """Though what was being created is taken back: whoever sweeps reads line by line."""
    marks.mark()
    for number in range(3):
        with marks.creating(number):
            pass
        (folder / f"file {number}").touch()
        marks.created(f"file {number}")
    (path,) = folder.glob(f"{marks.PREFIX}*")
    lines = path.read_bytes().decode().splitlines()
    assert lines[0] == marks.LOCKED and [line.split(" ", 3)[0] for line in lines[1:]] == [marks.FILE] * 3
    assert [line.split(" ", 3)[3] for line in lines[1:]] == ["file 0", "file 1", "file 2"]


def test_a_mark_lasts_as_long_as_its_process(folder):
    leftovers.mark()
    leftovers.mark()
    (path,) = folder.iterdir()
    leftovers.sweep()
    assert path.exists()
    marks._unmark(path, os.getpid() + 1)  # a fork ends
    assert path.exists()
    marks._unmark(path, os.getpid())
    assert not path.exists()


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="only root makes PID namespaces")
def test_a_process_of_another_pid_namespace(folder):
    """For real: its number is one of a dead process here, and its lock says that it lives, and when it is dead."""
    code = f"""
import os, pathlib, time
from kvmarket.processes import leftovers, marks
marks.FOLDER = pathlib.Path({str(folder)!r})
leftovers.mark()
file = marks.FOLDER / f"torch_{{os.getpid()}}_1_1"
file.touch()
marks.created(file.name)
print(flush=True)
time.sleep(60)
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        other.stdout.readline()
        before = names(folder)
        assert len(before) == 2
        leftovers.sweep()
        assert names(folder) == before
        other.kill()
    until(lambda: leftovers.sweep() or not names(folder), seconds=5)


def test_no_room_for_a_mark_is_counted(folder, monkeypatch):
    monkeypatch.setattr(marks, "FOLDER", folder / "gone")
    name = "mark_missing{a kill would leave shared memory behind}"
    before = counters.snapshot().get(name, 0)
    leftovers.mark()
    with marks.creating(BYTES):
        pass
    marks.created("nothing")
    assert counters.snapshot()[name] == before + 2


def test_memory_is_marked_while_it_is_moved(folder):
    """Whatever size it has."""
    seen = []

    class Storage:
        def nbytes(self) -> int:
            return 777

        def _share_fd_cpu_(self) -> tuple[int, int]:
            seen.append(os.pread(marks._marks[folder], 1000, 0).decode().split())
            return os.memfd_create("storage"), 777

    os.close(shm._share(Storage()).fd)
    assert seen[0][:2] == ["locked", "creating"] and seen[0][-1] == "777"


def test_counters_of_cuda_handles_are_noted(folder, monkeypatch):
    """And the reader that torch expects is counted off: else it keeps the memory if none ever comes."""
    released: list[tuple[bytes, int]] = []
    monkeypatch.setattr(
        torch.UntypedStorage, "_release_ipc_counter_cuda", lambda *counter: released.append(counter), raising=False
    )

    class Storage:
        def _share_cuda_(self) -> tuple[object, ...]:
            torch_file()
            return 0, b"handle", 1, 0, f"/torch_{os.getpid()}_1_1".encode(), 7, b"event", True

    cuda_ipc._share(Storage())
    assert released == [(f"/torch_{os.getpid()}_1_1".encode(), 7)]
    assert f"torch_{os.getpid()}_1_1\n" in os.pread(marks._marks[folder], 1000, 0).decode()
