"""A cache in POSIX shared memory: moved in place, and refused, not killed, where there is no room for it."""

from __future__ import annotations

import os

import pytest
import torch

from kvmarket.errors import SharedMemoryError
from kvmarket.transport import export, map_memory, shm


class Room:
    f_frsize = 4096

    def __init__(self, nbytes: int) -> None:
        self.f_bavail = nbytes // self.f_frsize


@pytest.fixture
def storage():
    return torch.arange(5000, dtype=torch.int32).untyped_storage()


@pytest.fixture
def crowded(monkeypatch):
    """torch fails so often, as it does when somebody else takes the room first; what is left then."""
    failures, left, slept = [], [1 << 30], []
    real = torch.UntypedStorage._share_fd_cpu_

    def share(storage):
        if failures:
            failures.pop()
            raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
        return real(storage)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", share)
    monkeypatch.setattr(os, "statvfs", lambda _path: Room(left[0]))
    monkeypatch.setattr(shm, "sleep", slept.append)
    return failures, left, slept


def test_a_storage_is_moved_in_place_and_named(storage):
    view = torch.empty(0, dtype=torch.int32).set_(storage)
    memory = export([storage])
    assert storage.is_shared() and torch.equal(view, torch.arange(5000, dtype=torch.int32))
    (mapped,) = map_memory(memory, torch.device("cpu"))
    assert torch.equal(mapped.view(torch.int32), view)
    view[7] = -5
    assert mapped.view(torch.int32)[7] == -5
    assert export([storage]).files[0].inode == memory.files[0].inode, "once"


def test_engines_that_take_the_room_from_each_other_try_again(storage, crowded):
    failures, _, slept = crowded
    failures += [1, 1]
    memory = export([storage])
    assert memory.files[0].nbytes == 20000
    assert len(slept) == 2 and len(set(slept)) == 2, "not in step"


def test_where_the_room_is_gone_nobody_waits(storage, crowded):
    failures, left, slept = crowded
    failures += [1] * 50

    def take(seconds):
        slept.append(seconds)
        left[0] = 4096

    shm.sleep = take
    with pytest.raises(SharedMemoryError, match="shm-size"):
        export([storage])
    assert len(slept) == 1 and not storage.is_shared()


def test_it_does_not_try_for_ever(storage, crowded):
    failures, _, slept = crowded
    failures += [1] * 50
    with pytest.raises(SharedMemoryError, match="df /dev/shm"):
        export([storage])
    assert len(slept) == shm.TRIES - 1


def test_what_is_shared_already_needs_no_room(storage, monkeypatch):
    export([storage])
    monkeypatch.setattr(os, "statvfs", lambda _path: Room(0))
    export([storage])


def test_no_shared_memory_at_all(storage, monkeypatch):
    def refuse(_path):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "statvfs", refuse)
    with pytest.raises(SharedMemoryError, match="mount a tmpfs"):
        export([storage])
