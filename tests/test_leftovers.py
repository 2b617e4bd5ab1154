"""What a kill leaves in /dev/shm is removed by whoever comes next, and nothing that is not provably its own is."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmarket import leftovers, marks, shared_file
from kvmarket.cli.top import ask_status
from kvmarket.registry.address import Address
from kvmarket.shared_file import Process
from tests.model_engine import Peer, until

BYTES = 5000
ELSEWHERE = 12345  # a PID namespace
unfinished: list = []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """In place of /dev/shm, but a tmpfs as well."""
    folder = Path("/dev/shm") / f"test-{os.getpid()}"
    folder.mkdir()
    monkeypatch.setattr(marks, "FOLDER", folder)
    yield folder
    if folder in marks._marks:
        os.close(marks._marks.pop(folder))
    shutil.rmtree(folder)


def torch_file(number: int = 1, pid: int | None = None, nbytes: int = BYTES) -> Path:
    path = marks.FOLDER / f"torch_{pid or os.getpid()}_1_{number}"
    path.write_bytes(bytes(nbytes))
    return path


def share() -> None:
    """As over CUDA IPC: a file keeps its name."""
    leftovers.mark()
    marks.created(torch_file().name)


def allocate(number: int = 1, nbytes: int = BYTES, files: int = 1) -> None:
    """As on a CPU: a file has a name until its memory is there, which we do not live to see."""
    begin_to_allocate()
    for other in range(files):
        torch_file(number + other, nbytes=nbytes)


def begin_to_allocate() -> None:
    unfinished.append(marks.creating(BYTES))
    unfinished[0].__enter__()


class Sharer:
    """A process that shares memory, in its own or another PID namespace, until it is killed."""

    def __init__(self, *steps, namespace: int | None = None, as_process: int | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=self._run, args=(steps, namespace, as_process, theirs), daemon=True)
        self.process.start()
        self.pid = self._pipe.recv()

    @staticmethod
    def _run(steps, namespace, as_process, pipe) -> None:
        if namespace is not None:
            shared_file.pid_namespace = lambda: namespace
        if as_process is not None:
            own = Process.current()
            Process.current = classmethod(lambda cls: Process(as_process, own.start, own.namespace))
        for step in steps:
            step()
        pipe.send(os.getpid())
        time.sleep(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("namespace", [None, ELSEWHERE])
def test_what_the_killed_left_goes_and_nothing_else(folder, namespace):
    sharer = Sharer(share, namespace=namespace)
    others = {torch_file(2, sharer.pid).name, torch_file(1, sharer.pid + 1).name, "somebody's"}
    (folder / "somebody's").touch()
    before = names(folder)
    leftovers.sweep()
    assert names(folder) == before, "it still lives"
    sharer.kill()
    leftovers.sweep()
    assert names(folder) == others, "whoever has its number elsewhere may have made the other file"


@pytest.mark.parametrize("namespace", [None, ELSEWHERE])
def test_what_was_being_allocated_goes(folder, namespace):
    """Memory of a whole cache, where the kernel kills for lack of memory."""
    sharer = Sharer(allocate, namespace=namespace)
    before = names(folder)
    leftovers.sweep()
    assert names(folder) == before, "it still lives"
    sharer.kill()
    leftovers.sweep()
    assert not names(folder)


@pytest.mark.parametrize("made", [{"nbytes": BYTES + 1}, {"files": 2}])
def test_what_may_be_another_processs_stays(folder, made):
    sharer = Sharer(lambda: allocate(**made))
    files = {name for name in names(folder) if name.startswith("torch_")}
    sharer.kill()
    leftovers.sweep()
    assert names(folder) == files


def test_a_file_made_long_after_stays(folder):
    sharer = Sharer(begin_to_allocate)
    for _ in range(2 * leftovers._NEXT_INODES):
        (folder / "others").touch()
        (folder / "others").unlink()
    later = torch_file(pid=sharer.pid)
    sharer.kill()
    leftovers.sweep()
    assert names(folder) == {later.name}


def test_another_with_the_same_number_keeps_what_may_be_its_own(folder):
    """Containers that are started in the same way have the same numbers and the same sizes."""
    sharer = Sharer(allocate)
    twin = Sharer(leftovers.mark, namespace=ELSEWHERE, as_process=sharer.pid)
    sharer.kill()
    before = names(folder)
    leftovers.sweep()
    assert names(folder) == before
    twin.kill()
    leftovers.sweep()
    assert not names(folder)


def test_a_number_that_is_used_again_keeps_what_may_be_its_own(folder, monkeypatch):
    sharer = Sharer(allocate)
    sharer.kill()
    before = names(folder)
    with monkeypatch.context() as patched:
        patched.setattr(leftovers, "start_time", lambda pid: 1)
        leftovers.sweep()
        assert names(folder) == before
    leftovers.sweep()
    assert not names(folder)


def test_memory_that_has_lost_its_name_is_noted_no_more(folder):
    with marks.creating(BYTES):
        (noted,) = (path for path in folder.iterdir() if b"creating" in path.read_bytes())
    os.lseek(marks._marks[folder], 0, os.SEEK_SET)
    assert os.read(marks._marks[folder], 1000) == b"locked\n", noted


@pytest.mark.parametrize("instead", ["file", "link", "another user's"])
def test_what_took_the_name_of_a_file_stays(folder, monkeypatch, instead):
    sharer = Sharer(share)
    sharer.kill()
    file = folder / f"torch_{sharer.pid}_1_1"
    if instead != "another user's":
        file.rename(folder / "aside")
    if instead == "file":
        file.touch()
    elif instead == "link":
        file.symlink_to(folder / "aside")
    else:
        monkeypatch.setattr(leftovers.os, "geteuid", lambda: 54321)
    before = names(folder)
    leftovers.sweep()
    left = {name for name in before if not name.startswith(marks.PREFIX)}
    assert names(folder) == (before if instead == "another user's" else left)


def test_a_fork_does_not_keep_what_its_parent_left(folder):
    sharer = Sharer(share, fork_and_forget)
    sharer.kill()
    leftovers.sweep()
    left = names(folder) - {"fork"}
    os.kill(int((folder / "fork").read_text()), signal.SIGKILL)
    assert not left


def fork_and_forget() -> None:
    """Wait in a fork, like one that a library made to run something else."""
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    (marks.FOLDER / "fork").write_text(str(child))


def test_a_fork_has_a_mark_of_its_own(folder):
    leftovers.mark()
    sharer = Sharer(share)
    assert len([name for name in names(folder) if name.startswith(marks.PREFIX)]) == 2
    sharer.kill()
    leftovers.sweep()
    assert len(names(folder)) == 1, "ours"


@pytest.mark.parametrize("namespace", [None, ELSEWHERE])
def test_marks_of_an_older_version(folder, namespace):
    """They are not locked, and name no files; that their process is dead can only be seen in its namespace."""
    over = subprocess.Popen(["true"])
    over.wait()
    old = folder / f"{marks.PREFIX}{namespace or Process.current().namespace}-{over.pid}-17"
    old.touch(mode=0o600)
    file = torch_file(pid=over.pid)
    me = Process.current()
    living = folder / f"{marks.PREFIX}{me.namespace}-{os.getppid()}-{shared_file.start_time(os.getppid())}"
    living.touch(mode=0o600)
    leftovers.sweep()
    assert names(folder) == {file.name, living.name} | ({old.name} if namespace else set())


@pytest.mark.parametrize(
    "content", [b"locked", b"locked\ncreating", b"locked\ncreating 1 x 3\nfile", b"\xff\nlocked\n\n"]
)
def test_whatever_a_mark_says_it_is_swept(folder, content):
    over = subprocess.Popen(["true"])
    over.wait()
    (folder / f"{marks.PREFIX}{ELSEWHERE}-{over.pid}-17").write_bytes(content)
    file = torch_file(pid=over.pid)
    leftovers.sweep()
    assert names(folder) == {file.name}


def test_sweeping_keeps_no_descriptor_and_waits_for_nobody(folder):
    os.mkfifo(folder / f"{marks.PREFIX}{ELSEWHERE}-7-17")
    (folder / f"{marks.PREFIX}{ELSEWHERE}-8-17").symlink_to("/dev/null")
    (folder / f"{marks.PREFIX}no-mark").touch()
    sharer = Sharer(share)
    left = names(folder)
    before = names(Path("/proc/self/fd"))
    leftovers.sweep()
    os.kill(sharer.pid, signal.SIGKILL)
    until(lambda: leftovers.sweep() or len(names(folder)) == len(left) - 2, seconds=5)
    assert names(Path("/proc/self/fd")) == before


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
from kvmarket import leftovers, marks
marks.FOLDER = pathlib.Path({str(folder)!r})
leftovers.mark()
file = marks.FOLDER / f"torch_{{os.getpid()}}_1_1"
file.touch()
marks.created(file.name)
print(flush=True)
time.sleep(60)
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as other:
        other.stdout.readline()
        before = names(folder)
        assert len(before) == 2
        leftovers.sweep()
        assert names(folder) == before
        other.kill()
    until(lambda: leftovers.sweep() or not names(folder), seconds=5)


def test_what_a_killed_engine_left_in_shared_memory_is_removed_soon(market_address):
    """Also where its connection had ended before it was dead."""
    peer = Peer(market_address)
    marked = lambda: [*Path("/dev/shm").glob(f"kvmarket-shares-*-{peer.pid}-*")]  # noqa: E731
    assert marked()
    peer.hang_up()
    until(lambda: not ask_status(Address(market_address)).members, seconds=1)
    peer.kill()
    until(lambda: not marked(), seconds=10)
