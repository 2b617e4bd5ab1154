"""The four verbs over CUDA IPC: two processes on one GPU, and on two."""

from __future__ import annotations

import ctypes
import multiprocessing
import random

import pytest
import torch

from kvmarket import counters
from kvmarket.ways.gpu.copy_engine import driver
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until

STAGING = 16 * 2 * 2 * BLOCK * 24 * 2


def exchange(reader, peer):
    """In place, staged, partly, and after the owner's death."""
    for seed, staged in ((1, False), (2, True), (3, False)):
        tokens = prompt(30, seed)
        assert peer.publish(tokens, random.Random(seed).sample(range(32), 7), staged) == 7
        until(lambda tokens=tokens: reader.market.match(tokens).blocks == 7)
        assert reader.take(tokens, [5, 6, 7, 8, 29, 10, 11]) == 7
        assert reader.take(tokens, [20, 21, 22], 2) == 3
    tokens = prompt(30, 4)
    peer.publish(tokens, list(range(7)), False)
    until(lambda: reader.market.match(tokens).blocks == 7)
    hit = reader.market.match(tokens)
    peer.kill()
    assert until(lambda: reader.market.match(tokens).blocks == 0) < 1.0
    valid = reader.market.fetch(hit, list(range(7))).wait()
    assert all(reader.holds(slot, tokens[: (slot + 1) * BLOCK]) for slot in range(valid))


@pytest.mark.gpu
def test_two_processes_on_one_gpu(market_address):
    reader, peer = (
        ModelEngine(market_address, device="cuda"),
        Peer(market_address, device="cuda", staging_bytes=STAGING),
    )
    exchange(reader, peer)
    reader.close()


@pytest.mark.gpu2
@pytest.mark.parametrize(("here", "there"), [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_two_processes_on_two_gpus(market_address, here, there):
    reader, peer = ModelEngine(market_address, device=here), Peer(market_address, device=there, staging_bytes=STAGING)
    exchange(reader, peer)
    reader.close()


@pytest.mark.gpu2
def test_each_process_sees_one_gpu_only(market_address):
    peer = Peer(market_address, device="cuda:0", staging_bytes=STAGING, env={"CUDA_VISIBLE_DEVICES": "1"})
    reader = ModelEngine(market_address, device="cuda:0")
    exchange(reader, peer)
    reader.close()


def has_context(device: int) -> bool:
    """Whether this process has a context on a GPU, which takes some 500 MB of its memory."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    assert driver().cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
    return bool(active.value)


def live_on_one_gpu(pipe, address: str) -> None:
    """Publish and fetch on the second GPU, from and to another process there, with fetches under way when it dies."""
    there = Peer(address, device="cuda:1", staging_bytes=STAGING)
    here = ModelEngine(address, device="cuda:1", staging_bytes=STAGING)
    for seed, staged in ((50, False), (51, True)):
        assert here.publish(prompt(28, seed), list(range(7)), staged) == 7
        assert there.publish(prompt(28, seed + 2), list(range(7)), staged) == 7
        until(lambda seed=seed: there.take(prompt(28, seed), list(range(8, 15))) == 7)
        hit = matched(here, prompt(28, seed + 2))
        moved = here.market.fetch(hit, list(range(16, 23)))
        until(moved.done)
        assert moved.wait() == 7
    with torch.cuda.device(1):
        torch.cuda._sleep(200_000_000)
        moved = here.market.fetch(hit, list(range(16, 23)))
    there.kill()
    until(lambda: here.market.match(prompt(28, 53)).blocks == 0)
    moved.wait()
    here.close()
    pipe.send([has_context(device) for device in range(2)])


@pytest.mark.gpu2
def test_a_process_that_uses_the_second_gpu_takes_nothing_of_the_first(market_address):
    context = multiprocessing.get_context("spawn")
    pipe, child = context.Pipe()
    process = context.Process(target=live_on_one_gpu, args=(child, market_address))
    process.start()
    child.close()
    assert pipe.recv() == [False, True]
    process.join()


@pytest.mark.gpu
def test_an_engine_on_a_cpu_and_one_on_a_gpu_never_meet(market_address):
    cpu, gpu = ModelEngine(market_address), ModelEngine(market_address, device="cuda")
    tokens = prompt(16)
    cpu.publish(tokens, [0, 1, 2, 3])
    until(lambda: cpu.market.match(tokens).blocks == 4)
    assert gpu.market.match(tokens).blocks == 0
    cpu.close()
    gpu.close()


@pytest.mark.gpu
def test_a_generation_raised_while_the_copy_runs(market_address):
    owner, reader = ModelEngine(market_address, device="cuda"), ModelEngine(market_address, device="cuda")
    tokens = prompt(28, 9)
    owner.publish(tokens, list(range(7)))
    until(lambda: reader.market.match(tokens).blocks == 7)
    hit = reader.market.match(tokens)
    torch.cuda._sleep(50_000_000)  # the copy waits for the current stream
    moved = reader.market.fetch(hit, list(range(7)))
    owner.market.retire([3])
    assert not moved.done() or moved.wait() == 3
    assert moved.wait() == 3
    assert moved.valid.tolist() == [True] * 3 + [False] + [True] * 3
    owner.close()
    reader.close()


@pytest.mark.gpu
def test_bytes_that_changed_behind_the_checksum_are_not_valid(market_address):
    owner = ModelEngine(market_address, device="cuda", staging_bytes=STAGING)
    reader = ModelEngine(market_address, device="cuda")
    tokens = prompt(28, 10)
    owner.publish(tokens, list(range(7)), staged=True)
    until(lambda: reader.market.match(tokens).blocks == 7)
    segment = owner.market._staging.slots.segments[0]
    segment[5 * owner.cache.slot_bytes + 9] ^= 4
    before = counters.snapshot()
    assert reader.take(tokens, list(range(7))) == 5
    assert sum(counters.snapshot().values()) > sum(before.values())
    assert any(name.startswith("fetch_corrupt") for name in counters.snapshot())
    owner.close()
    reader.close()


def _idle_reader(pipe, address: str, tokens: list[int]) -> None:
    """A data half without a scheduler, as the worker of an engine that has nothing to do: it fetches once."""
    from kvmarket import PagedCache
    from kvmarket.market.data import DataHalf

    matcher = ModelEngine(address, device="cuda")
    layers = [torch.zeros((32, 2, BLOCK, 24), dtype=torch.int16, device="cuda") for _ in range(2)]
    worker = DataHalf(PagedCache(layers, block_size=BLOCK))
    until(lambda: matcher.market.match(tokens).blocks == 4)
    pipe.send(worker.fetch(matcher.market.match(tokens), [0, 1, 2, 3]).wait())
    matcher.close()
    pipe.recv()
    worker.close()


@pytest.mark.gpu
def test_an_idle_survivor_lets_go_of_a_dead_engines_memory_within_a_second(own_address):
    """Nobody calls its data half meanwhile: the memory is free again, so that the dead one can start again."""
    big = 4 << 30
    peer, tokens = Peer(own_address, device="cuda", slots=big // (2 * 2 * BLOCK * 24 * 2)), prompt(16)
    peer.publish(tokens, [0, 1, 2, 3])
    mine, theirs = multiprocessing.get_context("spawn").Pipe()
    survivor = multiprocessing.get_context("spawn").Process(target=_idle_reader, args=(theirs, own_address, tokens))
    survivor.start()
    assert mine.poll(120) and mine.recv() == 4
    before = torch.cuda.mem_get_info()[0]
    peer.kill()
    assert until(lambda: torch.cuda.mem_get_info()[0] > before + big // 2) < 1.5, "and the kill itself takes a moment"
    mine.send("end")
    survivor.join()
