"""Who may talk to whom: another user, another version, files that are not what they were said to be."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import select
import socket
import threading
from pathlib import Path

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError, NamespaceError, RefusedError, SharedMemoryError, VersionError
from kvmarket.pool import GenerationReader, Generations
from kvmarket.processes.shared_file import Process, SharedFile, pid_namespace
from kvmarket.processes.watching import watch
from kvmarket.registry.client import connection
from kvmarket.registry.client.connection import join_service
from kvmarket.registry.client.foreign import ForeignPools
from kvmarket.registry.client.replica import Replica
from kvmarket.registry.protocol import packets
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import PROTOCOL, Joined, pack_message
from kvmarket.registry.protocol.packets import PacketListener, PacketSocket, dial
from kvmarket.registry.service.death_watch import open_pidfds
from kvmarket.registry.space.snapshot import SnapshotParts
from tests.registry.service.test_service import join_message
from tests.scarcity import descriptors
from tests.sleepers import Sleeper

NOBODY = 65534
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def joining_with():
    """What an engine joins with that offers nothing."""
    join = join_message()
    return join, Replica(join.block_size, join.pools), lambda: SnapshotParts([]), ForeignPools(lambda _pool: ((), ()))


def _as_nobody(function, pipe, *arguments) -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    pipe.send(function(*arguments))


def as_nobody(function, *arguments):
    """What `function` returns in a process of another user."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_as_nobody, args=(function, theirs, *arguments))
    process.start()
    answer = mine.recv() if mine.poll(20) else "nothing"
    process.join()
    return answer


def answered(place: str) -> bool:
    try:
        return bool(ask_status(Address(place)))
    except AddressError:
        return False


def refusal_of(place: str) -> str:
    try:
        Address(place)
    except AddressError as error:
        return str(error)
    return ""


@root
def test_another_user_is_not_let_in(market_address):
    place = Address(market_address)
    assert place.socket.stat().st_mode & 0o777 == 0o600
    assert answered(market_address)
    place.socket.parent.chmod(0o755)  # even where somebody has opened directory and socket
    place.socket.chmod(0o777)
    try:
        assert as_nobody(answered, market_address) is False
        assert answered(market_address), "the service goes on"
    finally:
        place.socket.chmod(0o600)
        place.socket.parent.chmod(0o700)


@root
def test_another_users_address_is_refused_with_a_reason(market_address):
    place = Address(market_address)
    place.socket.parent.chmod(0o755)
    try:
        assert "give an address" in as_nobody(refusal_of, market_address)
    finally:
        place.socket.parent.chmod(0o700)


@pytest.mark.parametrize("side", ["service", "engine"])
def test_who_is_not_of_this_user_hears_nothing(own_address, monkeypatch, side):
    """Whichever end asks the kernel who the other one is: it says who we are, and we are another user."""
    path, uid = Address(own_address).socket, os.geteuid()
    with contextlib.closing(PacketListener(path)) as door:
        if side == "engine":
            monkeypatch.setattr(packets.os, "geteuid", lambda: NOBODY)
            with pytest.raises(AddressError, match=f"another user's .uid {uid}.; give an address"):
                dial(path)
            monkeypatch.undo()
            inside = door.accept()
            assert inside is not None and inside.receive() is None and inside.closed, "not a word"
            inside.close()
        else:
            with dial(path) as outside:
                monkeypatch.setattr(packets.os, "geteuid", lambda: NOBODY)
                assert door.accept() is None
                assert outside.receive() is None and outside.closed


def _listen(path, asked, pipe) -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with contextlib.closing(PacketListener(path)) as door:
        path.chmod(0o777)
        pipe.send("listening")
        asked.wait()
        with door._socket.accept()[0] as end:
            pipe.send(end.recv(100))


@root
@pytest.mark.parametrize("ask", ["join", "status"])
def test_another_users_service_is_told_nothing(tmp_path, monkeypatch, ask):
    """It lies in a directory where everybody may make files, and lets everybody in."""
    place = Address(tmp_path / "s")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777)
    context = multiprocessing.get_context("fork")
    (mine, theirs), asked = context.Pipe(), context.Event()
    process = context.Process(target=_listen, args=(place.socket, asked, theirs))
    process.start()
    assert mine.recv() == "listening"
    with pytest.raises(AddressError, match="another user"):
        Address(place.socket)
    monkeypatch.setattr(Address, "service_lives", lambda self: True)  # as if it had come a moment later
    with pytest.raises(AddressError, match=f"another user's .uid {NOBODY}."):
        if ask == "join":
            join_service(place, *joining_with(), threading.Event())
        else:
            ask_status(place)
    asked.set()
    assert mine.recv() == b""
    process.join()


def test_a_process_is_watched_where_its_number_means_something():
    me, over = Process.current(), Sleeper()
    pidfd = watch(over.known)
    over.kill()
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NamespaceError, match="namespace"):
        watch(Process(me.pid, me.start, me.namespace + 1))
    with pytest.raises(RefusedError, match="cannot be watched"):
        watch(over.known)
    with pytest.raises(RefusedError, match="not the one that was named"):
        watch(Process(me.pid, me.start + 1, me.namespace))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_descriptor_to_look_at_a_process(monkeypatch):
    def refuse(self) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(Process, "alive", refuse)
    with pytest.raises(RefusedError, match="try again"):
        watch(Process.current())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("dies", [True, False])
def test_a_service_that_dies_once_it_has_let_one_in_is_no_refusal(dies):
    """One that goes on, but is no process here, is: what to do about that must be said."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    over = Sleeper()
    over.kill()
    with PacketSocket(theirs) as service, PacketSocket(ours) as member:
        joining = connection.Connection(member, *joining_with())
        service.send(pack_message(Joined(over.known)))
        if dies:
            service.close()
            assert not joining.joined(threading.Event())
        else:
            with pytest.raises(RefusedError, match="cannot be watched"):
                joining.joined(threading.Event())


def test_a_service_of_another_pid_namespace_is_not_watched_by_its_number():
    """A process here may have that number, and would live on, or die, instead of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with PacketSocket(theirs) as service, PacketSocket(ours) as member:
        joining = connection.Connection(member, *joining_with())
        me = Process.current()
        elsewhere = Joined(Process(me.pid, me.start, me.namespace + 1))
        service.send(pack_message(elsewhere))
        assert not joining.joined(threading.Event()), "nothing would tell of its end: it is joined again"
        reads, writes = os.pipe()
        service.send(pack_message(elsewhere), (reads, reads))
        assert joining.joined(threading.Event()) and os.fstat(joining.pidfd) == os.fstat(reads)
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        joining.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 2, "that of the socket, and one of the two"
        os.close(reads)
        os.close(writes)


def test_another_version_is_told_so(market_address, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            connection, "pack_message", lambda message: pack_message(message).replace(PROTOCOL, b"kvmarket/0\n")
        )
        with pytest.raises(VersionError, match="one version"):
            join_service(Address(market_address), *joining_with(), threading.Event())


@pytest.mark.parametrize("damage", ["shorter", "other", "gone"])
def test_shared_files_that_are_not_what_was_said(damage):
    generations = Generations(64)
    file = generations.file
    GenerationReader(file, 64)
    fd = os.memfd_create("other")
    os.ftruncate(fd, file.nbytes)
    changed = {
        "shorter": SharedFile(file.owner, file.fd, file.device, file.inode, file.nbytes + 8),
        "other": SharedFile(file.owner, fd, file.device, file.inode, file.nbytes),
        "gone": SharedFile(file.owner, 9999, file.device, file.inode, file.nbytes),
    }[damage]
    with pytest.raises(SharedMemoryError):
        GenerationReader(changed, (changed.nbytes - 64) // 8)
    os.close(fd)
    with pytest.raises(PermissionError):
        os.ftruncate(file.fd, 8)  # sealed: nobody can pull the memory away under a reader
    generations.close()


def test_a_process_of_another_pid_namespace_is_not_read_by_its_number():
    """The number may be that of a process here, whose descriptors hold something else."""
    fd = os.memfd_create("pool")
    os.ftruncate(fd, 4096)
    file = SharedFile.of(fd, 4096)
    me = file.owner
    for owner in (Process(me.pid, me.start, me.namespace + 1), Process(2**31 - 1, me.start, me.namespace + 1)):
        with pytest.raises(NamespaceError, match="another PID namespace"):
            SharedFile(owner, fd, file.device, file.inode, 4096).map()
    with pytest.raises(SharedMemoryError, match="is gone"):
        SharedFile(Process(me.pid, me.start + 1, me.namespace), fd, file.device, file.inode, 4096).map()
    for device, inode in ((file.device + 1, file.inode), (file.device, file.inode + 1)):
        with pytest.raises(SharedMemoryError, match="is not what its owner said"):
            SharedFile(me, fd, device, inode, 4096).map()
    file.map().close()
    os.close(fd)


def test_a_truncated_pool_is_refused_when_it_is_mapped():
    fd = os.memfd_create("pool")
    os.ftruncate(fd, 4096)
    file = SharedFile.of(fd, 4096)
    os.ftruncate(fd, 100)
    with pytest.raises(SharedMemoryError, match="100 bytes where 4096"):
        file.map()
    os.close(fd)


def test_who_cannot_be_watched_costs_no_descriptor():
    """One of an engine's processes is dead: those that were opened for the others are closed."""
    before = descriptors()
    dead = Process(os.getpid(), 1, pid_namespace())
    for _ in range(3):
        with pytest.raises(RefusedError, match="has died"):
            open_pidfds([Process.current(), Process.current(), dead])
    assert descriptors() == before
