"""Every way of a GPU, forced: bit for bit what the reference copies, in the order of the caller's stream."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from bench.micro.forms import CASES, Case, Shape, clone
from kvmarket.errors import TransportError
from kvmarket.kernels import can_sum, pull_reference
from kvmarket.kernels.checksum import checksum_reference
from kvmarket.layout.paged import SlotArray
from kvmarket.transport import enable_peer_access
from kvmarket.ways import Copy
from kvmarket.ways.choice import Forced
from kvmarket.ways.gpu import buffers, copy_engine, staged_way
from tests.bitwise import assert_bitwise
from tests.kernels.arrays import on

pytestmark = pytest.mark.gpu
SLOTS = 40
FLAT = [
    Case("copy packed", Shape("kv", 16, 8, 128), "packed", "packed"),
    Case("copy block outermost", Shape("fused", 16, 8, 256), "nhc_block_outermost", "nhc_block_outermost"),
    Case("copy mla", Shape("mla", 64, 1, 576), "latent_block_outermost", "packed"),
]
PACKED = [case for case in CASES if case.source == "packed" and case.destination != "packed"]
ALL = [("pull", case) for case in [*CASES, *FLAT]] + [("copy", case) for case in FLAT]
ALL += [("staged", case) for case in PACKED]
PEERS = [pytest.param("cuda:0", id="same"), pytest.param("cuda:1", id="peer", marks=pytest.mark.gpu2)]


def movers(way: str, source: SlotArray, own: SlotArray, owner: str):
    """The source on its owner's GPU, our own array on GPU 0, and what moves from one to the other."""
    from kvmarket.ways.gpu.mover import GpuMover

    source, own = on(owner, source), on("cuda:0", own)
    if owner != "cuda:0":
        enable_peer_access(source.segments[0], own.device)
    return source, own, GpuMover(own, choice=Forced(way))


def slots(count: int, seed: int) -> np.ndarray:
    """Some slots in random order, with a run in the middle."""
    chosen = random.Random(seed).sample(range(SLOTS), count)
    return np.array(chosen, np.int64)


@pytest.mark.parametrize("owner", PEERS)
@pytest.mark.parametrize(("way", "case"), ALL, ids=lambda value: getattr(value, "name", value))
def test_bit_exact(way: str, case: Case, owner: str, monkeypatch: pytest.MonkeyPatch):
    array, target = case.arrays(layers=3, slots=SLOTS)
    monkeypatch.setattr(staged_way, "CHUNK_BYTES", 5 * array.layout.slot_bytes)
    monkeypatch.setattr(staged_way, "LAST_BYTES", array.layout.slot_bytes)
    monkeypatch.setattr(buffers, "FEW", 20)
    monkeypatch.setattr(buffers, "MANY", 20)
    source, own, mover = movers(way, array, target, owner)
    expected = clone(target)
    for count, seed, most in ((1, 1, 4096), (SLOTS, 2, 4096), (17, 3, 4096), (0, 4, 4096), (23, 5, 0), (19, 6, 0)):
        monkeypatch.setattr(buffers, "UNITS", most)
        ids, places = slots(count, seed), slots(count, seed + 10)
        started = mover.start([Copy(source, ids, places, summed=way != "copy")])
        (sums,) = started.finish()
        assert started.query()
        pull_reference(array, torch.from_numpy(ids), expected, torch.from_numpy(places))
        assert_bitwise(on("cpu", own), expected)
        assert (sums is not None) == (way != "copy" and can_sum(source, own))
        if sums is not None:
            assert sums.tolist() == checksum_reference(array, torch.from_numpy(ids)).tolist()
    mover.close()


@pytest.mark.parametrize("owner", PEERS)
def test_ids_of_many_wide_blocks_stay_in_host_memory(owner: str):
    many = 3 * buffers.FEW
    array, target = CASES[0].arrays(layers=2, slots=many + 9)
    source, own, mover = movers("pull", array, target, owner)
    ids, places = (np.array(random.Random(seed).sample(range(many + 9), many), np.int64) for seed in (1, 2))
    expected = clone(target)
    pull_reference(array, torch.from_numpy(ids), expected, torch.from_numpy(places))
    mover.start([Copy(source, ids, places, summed=False)]).finish()
    assert_bitwise(on("cpu", own), expected)
    free = mover.ways._ways[0]._free
    assert free._short and not free._long
    mover.close()


@pytest.mark.parametrize(("way", "case"), [ALL[0], ("copy", FLAT[0]), ("staged", PACKED[0])], ids=str)
def test_runs_after_the_current_stream_and_streams_do_not_mix(way: str, case: Case):
    array, target = case.arrays(layers=3, slots=SLOTS)
    source, own, mover = movers(way, array, target, "cuda:0")
    ids = np.arange(SLOTS)
    for stream in (torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            for segment in own.segments:
                segment.fill_(7)  # what the caller's stream still writes when the copy is asked for
            started = mover.start([Copy(source, ids, ids[::-1].copy(), summed=False)])
        started.finish()
        expected = clone(target)
        for segment in expected.segments:
            segment.fill_(7)
        pull_reference(array, torch.from_numpy(ids), expected, torch.from_numpy(ids[::-1].copy()))
        assert_bitwise(on("cpu", own), expected)
    mover.close()


def test_several_ways_in_one_fetch_and_many_fetches_at_once():
    array, target = FLAT[0].arrays(layers=3, slots=SLOTS)
    source, own, mover = movers("copy", array, target, "cuda:0")
    expected, started = clone(target), []
    for seed in range(12):
        mover.ways.choice = Forced(("copy", "pull")[seed % 2])
        ids, places = slots(3, seed), np.arange(3) + 3 * seed
        started.append(mover.start([Copy(source, ids, places, summed=False)]))
        pull_reference(array, torch.from_numpy(ids), expected, torch.from_numpy(places))
    for each in started:
        each.finish()
    assert_bitwise(on("cpu", own), expected)
    mover.close()


def test_sums_of_many_short_fetches_at_once_do_not_mix():
    array, target = PACKED[0].arrays(layers=3, slots=SLOTS)
    source, _, mover = movers("pull", array, target, "cuda:0")
    for round_ in range(3):  # the second and third use the memory of the first again, in another order
        asked = [slots(1 + (seed * 7 + round_) % 20, 100 * round_ + seed) for seed in range(12)]
        started = [mover.start([Copy(source, ids, ids[::-1].copy(), summed=True)]) for ids in asked]
        for ids, each in random.Random(round_).sample(list(zip(asked, started, strict=True)), len(asked)):
            (sums,) = each.finish()
            assert sums.tolist() == checksum_reference(array, torch.from_numpy(ids)).tolist()
    mover.close()


@pytest.mark.parametrize(("way", "case"), [("copy", FLAT[0]), ("staged", PACKED[0])], ids=str)
def test_a_launch_that_fails_is_said(way: str, case: Case, monkeypatch: pytest.MonkeyPatch):
    array, target = case.arrays(layers=3, slots=SLOTS)
    source, _, mover = movers(way, array, target, "cuda:0")

    def refuse(*_arguments: object) -> None:
        raise TransportError("the copy engine refused")

    monkeypatch.setattr(copy_engine, "copy_ranges", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        mover.start([Copy(source, slots(5, 1), slots(5, 2), summed=False)]).finish()
    mover.close()


def test_the_driver_says_what_it_refused():
    with pytest.raises(TransportError, match="CUDA_ERROR"):
        copy_engine.fill_zero(1, 1, torch.cuda.Stream().cuda_stream)


@pytest.mark.parametrize(("way", "case"), [("pull", FLAT[0]), ("copy", FLAT[0]), ("staged", PACKED[0])], ids=str)
def test_a_thread_that_never_used_the_gpu_may_fetch(way: str, case: Case):
    """The driver takes copies only from a thread that has the device's context; a new one has none."""
    array, target = case.arrays(layers=3, slots=SLOTS)
    expected = clone(target)
    source, own, mover = movers(way, array, target, "cuda:0")
    ids, places, found = slots(23, 1), slots(23, 2), []
    pull_reference(array, torch.from_numpy(ids), expected, torch.from_numpy(places))

    def fetch() -> None:
        found.append(mover.start([Copy(source, ids, places, summed=False)]).finish())

    thread = threading.Thread(target=fetch)
    thread.start()
    thread.join()
    assert found == [[None]], "it raised"
    assert_bitwise(on("cpu", own), expected)
    mover.close()
