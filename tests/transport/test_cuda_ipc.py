"""CUDA IPC: exported memory goes back to the device when its owner lets it go, though nobody has ever mapped it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import msgspec
import pytest
import torch

from kvmarket.transport import decode_memory, export, map_memory
from kvmarket.transport.memory import Memory
from tests.model_engine import until

pytestmark = pytest.mark.gpu
SIZE = 256 << 20


def free() -> int:
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(0)[0])


def test_memory_that_nobody_maps_is_given_back():
    torch.zeros(1, device="cuda:0")
    before = free()
    tensor = torch.zeros(SIZE, dtype=torch.uint8, device="cuda:0")
    memory = export([tensor.untyped_storage()])
    assert memory.kind == "cuda" and free() < before - SIZE // 2
    del tensor
    assert free() > before - SIZE // 2


def _map(connection: Connection) -> None:
    memory = msgspec.msgpack.decode(connection.recv_bytes(), type=Memory, dec_hook=decode_memory)
    (mapped,) = map_memory(memory, torch.device("cuda", 0))
    connection.send(int(mapped.min()))
    connection.recv()
    connection.send(int(mapped.min()))
    del mapped
    connection.send(None)
    connection.recv()


def test_memory_that_somebody_has_mapped_is_given_back_when_it_is_mapped_no_more():
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    reader = context.Process(target=_map, args=(there,))
    reader.start()
    tensor = torch.full((SIZE,), 7, dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    here.send_bytes(msgspec.msgpack.encode(export([tensor.untyped_storage()])))
    assert here.recv() == 7
    while_mapped = free()
    del tensor
    free()
    here.send(None)
    assert here.recv() == 7, "the bytes stay where a reader has them mapped"
    assert here.recv() is None
    until(lambda: free() > while_mapped + SIZE // 2)
    here.send(None)
    reader.join()
