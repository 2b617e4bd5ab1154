"""Who may talk to whom: another user, another version, files that are not what they were said to be."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import threading
import time

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError, RefusedError, SharedMemoryError, VersionError
from kvmarket.pool import GenerationReader, Generations
from kvmarket.registry import line
from kvmarket.registry.address import Address
from kvmarket.registry.line import join_service
from kvmarket.registry.messages import PROTOCOL, Joined, pack_message
from kvmarket.registry.wire import Wire
from kvmarket.shared_file import Process, SharedFile
from tests.registry.test_service import join_message

NOBODY = 65534
root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


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


@root
def test_another_users_service_is_refused(own_address, monkeypatch):
    """A service that says it is a process which belongs to somebody else."""
    monkeypatch.setattr(line.os, "getuid", lambda: NOBODY)
    with pytest.raises(RefusedError, match="another user"):
        line._watch_process(Process.current())


@pytest.mark.parametrize("dies", [True, False])
def test_a_service_that_dies_once_it_has_let_one_in_is_no_refusal(dies):
    """One that goes on, but is no process here, is: what to do about that must be said."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    over = subprocess.Popen(["true"])
    over.wait()
    with Wire(theirs, 8) as service, Wire(ours, 8) as member:
        joining = line.Line(member, join_message())
        service.send(pack_message(Joined(Process(over.pid, 0, 0))))
        if dies:
            service.close()
            assert not joining.joined(threading.Event(), time.monotonic() + 5)
        else:
            with pytest.raises(RefusedError, match="cannot be watched"):
                joining.joined(threading.Event(), time.monotonic() + 5)


def test_another_version_is_told_so(market_address, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(line, "pack_message", lambda message: pack_message(message).replace(PROTOCOL, b"kvmarket/9\n"))
        with pytest.raises(VersionError, match="one version"):
            join_service(Address(market_address), join_message(), threading.Event())


@pytest.mark.parametrize("damage", ["shorter", "other", "gone"])
def test_shared_files_that_are_not_what_was_said(damage):
    generations = Generations(64)
    file = generations.file
    GenerationReader(file, 64)
    fd = os.memfd_create("other")
    os.ftruncate(fd, 8)
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


def test_a_truncated_pool_is_refused_when_it_is_mapped():
    fd = os.memfd_create("pool")
    os.ftruncate(fd, 4096)
    file = SharedFile.of(fd, 4096)
    os.ftruncate(fd, 100)
    with pytest.raises(SharedMemoryError, match="100 bytes where 4096"):
        file.map()
    os.close(fd)


def test_a_socket_that_vanishes_stops_nobody_who_is_in(own_address):
    """Whoever joined goes on; whoever comes later is told what to do."""
    from tests.model_engine import ModelEngine, matched, prompt

    first, second = ModelEngine(own_address), ModelEngine(own_address)
    place = Address(own_address)
    place.socket.unlink()
    tokens = prompt(16)
    first.publish(tokens, [0, 1, 2, 3])
    assert matched(second, tokens).blocks == 4
    line_seconds = line.START_SECONDS
    line.START_SECONDS = 2.0
    try:
        with pytest.raises(AddressError, match="did not answer"):
            ModelEngine(own_address)
    finally:
        line.START_SECONDS = line_seconds
    first.close()
    second.close()
