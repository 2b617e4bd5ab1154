"""Host memory for GPUs, with a GPU: another process uses it in place, and it goes when nobody does."""

from __future__ import annotations

import gc
import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from kvmarket.errors import SharedMemoryError, TransportError
from kvmarket.transport import HostMemory, host
from tests.transport.test_host import CUDA, taken

pytestmark = pytest.mark.gpu


def _owns(pipe: Connection) -> None:
    memory, named = HostMemory.allocate((3 << 20) + 5, CUDA)
    memory.copy_(torch.arange(memory.numel(), device=CUDA, dtype=torch.int32).to(torch.uint8))
    torch.cuda.synchronize()
    pipe.send(named)
    pipe.recv()


def test_another_process_reads_it_in_place():
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_owns, args=(theirs,))
    process.start()
    (mapped,) = taken(ours.recv())
    want = torch.arange(mapped.numel(), dtype=torch.int32).to(torch.uint8)
    assert mapped.device == CUDA and mapped.numel() == (3 << 20) + 5
    assert torch.equal(mapped.cpu(), want)
    process.kill()
    process.join()
    assert torch.equal(mapped.clone().cpu(), want), "the owner's death does not fault a reader"


def test_it_is_let_go_when_the_tensor_is_freed():
    memory, named = HostMemory.allocate(1 << 20, CUDA)
    assert memory.device == CUDA and named.files[0].held()
    view = memory[5:]
    del memory
    view.fill_(3)
    torch.cuda.synchronize()
    del view
    gc.collect()
    assert not named.files[0].held(), "its descriptor is closed"
    with pytest.raises(SharedMemoryError):
        named.files[0].open()


def test_a_failure_to_lock_leaves_no_error_behind():
    with pytest.raises(TransportError, match="does not lock"):
        host.pinned(0, 4096, CUDA, None)
    torch.ones(10, device=CUDA).sum().item()
    torch.cuda.synchronize()
