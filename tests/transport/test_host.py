"""Host memory for GPUs: a thread maps it, whoever asks meanwhile is told to come again; kernels use it in place."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from pathlib import Path
from unittest.mock import MagicMock

import msgspec
import pytest
import torch

from kvmarket.errors import NamespaceError, SharedMemoryError, TransportError
from kvmarket.processes.shared_file import Process
from kvmarket.support.transient import is_transient
from kvmarket.transport import HostMemory, ShmMemory, decode_memory, host, map_memory, pinned
from kvmarket.transport.memory import Memory
from tests.model_engine import until

CUDA = torch.device("cuda", 0)


@pytest.fixture
def memory(monkeypatch):
    """Memory whose mapping waits for `go`, and which any device maps."""
    tensor = torch.arange(100, dtype=torch.uint8)
    found = HostMemory(ShmMemory.export([tensor.untyped_storage()]).files)
    go = threading.Event()

    def locked(file, _device):
        go.wait()
        return torch.frombuffer(bytearray(file.map()), dtype=torch.uint8)

    monkeypatch.setattr(host, "_locked", locked)
    yield found, go, tensor
    go.set()


def taken(memory: HostMemory) -> list[torch.Tensor]:
    found = []

    def there() -> bool:
        try:
            found.extend(map_memory(memory, CUDA))
        except TransportError as error:
            assert is_transient(error)
            return False
        return True

    until(there)
    return found


def threads() -> int:
    return sum(each.name == "kvmarket-lock" for each in threading.enumerate())


def test_who_asks_too_early_is_told_to_come_again(memory):
    found, go, tensor = memory
    for _ in range(3):
        with pytest.raises(TransportError, match="it is tried again") as error:
            map_memory(found, CUDA)
        assert is_transient(error.value)
    assert threads() == 1
    go.set()
    (mapped,) = taken(found)
    assert torch.equal(mapped, tensor)
    until(lambda: not threads())
    (again,) = taken(found)
    assert torch.equal(again, tensor) and again is not mapped


def test_what_is_mapped_ahead_is_there_at_once(memory):
    found, go, tensor = memory
    go.set()
    found.map_ahead(CUDA)
    until(lambda: host._MAPPER._made)
    found.map_ahead(CUDA)
    (mapped,) = map_memory(found, CUDA)
    assert torch.equal(mapped, tensor)
    until(lambda: not threads())
    assert not host._MAPPER._asked, "what was there was not mapped again"
    found.map_ahead(torch.device("cpu"))
    ShmMemory(found.files).map_ahead(torch.device("cpu"))
    assert not threads()


def test_a_failure_to_map_ahead_is_no_failure_of_who_comes_later(memory, monkeypatch):
    found, go, tensor = memory
    real, failed = host._locked, threading.Event()

    def refuses(file, device):
        failed.set()
        raise TransportError("the driver refuses just now")

    monkeypatch.setattr(host, "_locked", refuses)
    found.map_ahead(CUDA)
    assert failed.wait(20)
    until(lambda: not threads())
    monkeypatch.setattr(host, "_locked", real)
    go.set()
    assert torch.equal(taken(found)[0], tensor)


def test_a_failure_to_lock_keeps_nothing_mapped(monkeypatch):
    """A reader that is idle then would keep memory that its owner has given back."""
    storage = torch.arange(100, dtype=torch.uint8).untyped_storage()
    found = HostMemory(ShmMemory.export([storage]).files)
    inode = f" {found.files[0].inode} "
    own = Path("/proc/self/maps").read_text().count(inode)

    def refuses(*_, **__):
        raise TransportError("the driver refuses")

    monkeypatch.setattr(host, "pinned", refuses)
    gc.disable()
    try:
        until(lambda: "the driver refuses" in str(_refused(found)))
        until(lambda: not threads())
        assert Path("/proc/self/maps").read_text().count(inode) == own
    finally:
        gc.enable()
    del storage


def test_where_no_thread_can_be_started_the_next_one_who_asks_tries_again(memory, monkeypatch):
    found, go, tensor = memory
    go.set()

    def refuses(self):
        raise RuntimeError("no thread left")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuses)
        found.map_ahead(CUDA)
        assert is_transient(_refused(found))
    assert torch.equal(taken(found)[0], tensor)


FAILURES = {
    TransportError("refused"): False,
    RuntimeError("refused"): False,
    ValueError("refused"): False,
    MemoryError("refused"): True,
    OSError(errno.EMFILE, "refused"): True,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_is_told_once_and_tried_again(memory, monkeypatch, failure):
    found, _, tensor = memory
    real = host._locked

    def refuses(file, device):
        raise failure

    monkeypatch.setattr(host, "_locked", refuses)
    until(lambda: "refused" in str(_refused(found)))
    until(lambda: "refused" in str(error := _refused(found)) and is_transient(error) == FAILURES[failure])
    monkeypatch.setattr(host, "_locked", real)
    memory[1].set()
    assert torch.equal(taken(found)[0], tensor)


def _refused(memory: HostMemory) -> TransportError:
    with pytest.raises(TransportError) as error:
        map_memory(memory, CUDA)
    return error.value


def test_an_exception_that_nobody_expects_ends_no_thread(memory, monkeypatch):
    found, go, tensor = memory
    real = host._locked

    def fails(file, device):
        raise TypeError("a fault of ours")

    monkeypatch.setattr(host, "_locked", fails)
    until(lambda: "see the log" in str(_refused(found)))
    monkeypatch.setattr(host, "_locked", real)
    go.set()
    assert torch.equal(taken(found)[0], tensor)


def test_what_its_owner_has_given_back_is_let_go(monkeypatch):
    """The reader asked for it, and did not come again before it left."""
    monkeypatch.setattr(host, "LOOK_SECONDS", 0.02)
    made = []

    def locked(file, _device):
        tensor = torch.frombuffer(bytearray(file.map()), dtype=torch.uint8)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(host, "_locked", locked)
    storage = torch.arange(100, dtype=torch.uint8).untyped_storage()
    found = HostMemory(ShmMemory.export([storage]).files)
    with pytest.raises(TransportError):
        map_memory(found, CUDA)
    until(lambda: made)
    assert made[0]() is not None
    del storage
    until(lambda: made[0]() is None and not threads())


@pytest.mark.parametrize(("code", "transient"), [(2, True), (801, False)])
def test_a_lack_of_memory_is_transient(monkeypatch, code, transient):
    class Driver:
        def cuMemHostRegister_v2(self, *_):
            return code

    monkeypatch.setattr(pinned, "driver", Driver)
    monkeypatch.setattr(pinned, "explained", str)
    monkeypatch.setattr(pinned.torch, "cuda", MagicMock())
    with pytest.raises(TransportError, match=f"host memory: {code}") as error:
        pinned.pinned(4096, 4096, CUDA, None)
    assert is_transient(error.value) == transient


def test_what_is_never_taken_is_let_go(memory, monkeypatch):
    found, go, _ = memory
    made = []
    real = host._locked

    def noted(file, device):
        tensor = real(file, device)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(host, "_locked", noted)
    monkeypatch.setattr(host, "TAKEN_SECONDS", 0.05)
    with pytest.raises(TransportError):
        map_memory(found, CUDA)
    go.set()
    until(lambda: made and made[0]() is None and not threads())


def test_a_driver_that_locks_no_memory_for_reading_gets_a_mapping_to_write(monkeypatch):
    asked = []

    def pinned(address, nbytes, device, keep, *, read_only=False):
        asked.append(read_only)
        if read_only:
            raise TransportError("the driver does not lock 0 MB of host memory: CUDA_ERROR_NOT_SUPPORTED")
        keep[0] = 7  # it can be written
        return torch.from_numpy(keep)

    monkeypatch.setattr(host, "pinned", pinned)
    tensor = torch.arange(100, dtype=torch.uint8)
    (mapped,) = taken(HostMemory(ShmMemory.export([tensor.untyped_storage()]).files))
    assert asked == [True, False]
    assert tensor[0] == 7 and torch.equal(mapped, tensor), "it is the same memory"


def test_memory_of_a_dead_process_is_not_mapped(monkeypatch):
    tensor = torch.arange(100, dtype=torch.uint8)
    found = HostMemory(ShmMemory.export([tensor.untyped_storage()]).files)
    monkeypatch.setattr(Process, "alive", lambda self: False)
    until(lambda: "is gone, and its memory with it" in str(_refused(found)))


@pytest.mark.parametrize("failure", [SharedMemoryError("it is gone"), NamespaceError("it is elsewhere")])
def test_memory_that_cannot_be_mapped_to_read_is_not_mapped_to_write(monkeypatch, failure):
    asked = []

    def mapped(_file, _device, *, writable):
        asked.append(writable)
        raise failure

    monkeypatch.setattr(host, "_mapped", mapped)
    with pytest.raises(type(failure)):
        host._locked(None, CUDA)
    assert asked == [False]


def test_it_travels_as_its_own_kind():
    tensor = torch.arange(100, dtype=torch.uint8)
    found = HostMemory(ShmMemory.export([tensor.untyped_storage()]).files)
    there = decode_memory(Memory, msgspec.to_builtins(found))
    assert there == found and isinstance(there, HostMemory) and there.kind == "host"
    held = there.held_by(Process.current(), iter([5]))
    assert isinstance(held, HostMemory) and held.files[0].fd == 5
    assert not HostMemory.takes([tensor.untyped_storage()])
