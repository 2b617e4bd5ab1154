"""What a kill leaves in /dev/shm is removed by whoever comes next, and nothing that is not provably its own is."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.processes import leftovers, marks, shared_file
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from tests.model_engine import Peer, until
from tests.sharing import BYTES, ELSEWHERE, Sharer, allocate, begin_to_allocate, names, own_folder, share, torch_file


@pytest.fixture
def folder(monkeypatch):
    with own_folder(monkeypatch) as folder:
        yield folder


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


def test_a_file_of_another_file_system_is_another_file(folder):
    """Numbers of inodes are those of one device."""
    (folder / "memory").touch()
    status = (folder / "memory").stat()
    line = [marks.FILE, str(status.st_dev), str(status.st_ino), "memory"]
    assert leftovers._named(line) == folder / "memory"
    assert leftovers._named([marks.FILE, str(status.st_dev + 1), str(status.st_ino), "memory"]) is None
    assert leftovers._named([marks.FILE, str(status.st_dev), str(status.st_ino + 1), "memory"]) is None


def test_a_folder_that_cannot_be_listed_is_swept_another_time(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "glob", refuse)
    leftovers.sweep()


@pytest.mark.parametrize("nbytes", [0, BYTES])
@pytest.mark.parametrize("namespace", [None, ELSEWHERE])
def test_what_was_being_allocated_goes(folder, namespace, nbytes):
    """Memory of a whole cache, where the kernel kills for lack of memory."""
    sharer = Sharer(lambda: allocate(nbytes=nbytes), namespace=namespace)
    other = Sharer(leftovers.mark)
    before = names(folder)
    leftovers.sweep()
    assert names(folder) == before, "it still lives"
    sharer.kill()
    leftovers.sweep()
    assert len(names(folder)) == 1, "the other's mark"
    other.kill()


@pytest.mark.parametrize(("nbytes", "goes"), [(80_000, True), (2 << 20, False)])
def test_counters_that_were_being_made_go(folder, nbytes, goes):
    """Of CUDA IPC handles; how many torch makes at a time is its own affair."""
    sharer = Sharer(lambda: (begin_to_allocate(None), torch_file(nbytes=nbytes)))
    sharer.kill()
    leftovers.sweep()
    assert bool(names(folder)) != goes


def made_before() -> None:
    torch_file()
    begin_to_allocate()


def made_on_another_device() -> None:
    allocate()
    mark = marks._marks[marks.FOLDER]
    text = os.pread(mark, 1000, 0).decode().replace(f"creating {os.fstat(mark).st_dev}", "creating 1")
    os.ftruncate(mark, 0)
    os.write(mark, text.encode())


def made_as_a_pipe() -> None:
    begin_to_allocate()
    os.mkfifo(marks.FOLDER / f"torch_{os.getpid()}_1_1")


@pytest.mark.parametrize(
    "make",
    [
        lambda: allocate(nbytes=BYTES + 1),
        lambda: allocate(files=2),
        made_before,
        made_on_another_device,
        made_as_a_pipe,
    ],
)
def test_what_may_be_another_processs_stays(folder, make):
    sharer = Sharer(make)
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


def test_no_mark_leads_out_of_the_folder(folder, tmp_path):
    over = subprocess.Popen(["true"])
    over.wait()
    aside = folder / "aside"
    aside.mkdir()
    file = aside / "torch_1_1_1"
    file.touch()
    status = file.stat()
    text = f"locked\nfile {status.st_dev} {status.st_ino} aside/{file.name}\n"
    (folder / f"{marks.PREFIX}{ELSEWHERE}-{over.pid}-17").write_text(text)
    leftovers.sweep()
    assert names(folder) == {"aside"} and file.exists()


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
    (folder / "file").write_text("locked\n")
    (folder / f"{marks.PREFIX}{ELSEWHERE}-8-17").symlink_to(folder / "file")
    (folder / f"{marks.PREFIX}no-mark").touch()
    sharer = Sharer(share)
    left = names(folder)
    before = names(Path("/proc/self/fd"))
    leftovers.sweep()
    os.kill(sharer.pid, signal.SIGKILL)
    until(lambda: leftovers.sweep() or len(names(folder)) == len(left) - 2, seconds=5)
    assert names(Path("/proc/self/fd")) == before


def test_what_a_killed_engine_left_in_shared_memory_is_removed_soon(market_address):
    """Also where its connection had ended before it was dead."""
    peer = Peer(market_address)
    marked = lambda: [*Path("/dev/shm").glob(f"kvmarket-shares-*-{peer.pid}-*")]  # noqa: E731
    assert marked()
    peer.hang_up()
    until(lambda: not ask_status(Address(market_address)).members, seconds=1)
    peer.kill()
    until(lambda: not marked(), seconds=10)
