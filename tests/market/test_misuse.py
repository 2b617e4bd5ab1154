"""Every wrong call gets its own error that says what to do, before anything is launched, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.errors import (
    FingerprintError,
    KVMarketError,
    LayoutError,
    MisuseError,
    PeerAccessError,
    SharedMemoryError,
    SlotError,
    TokenError,
    TransportError,
)
from kvmarket.processes.shared_file import Process
from kvmarket.transport import CudaMemory, cuda_ipc
from tests.model_engine import BLOCK, FACTS, SLOTS, ModelEngine, until

FINGERPRINT = kvmarket.Fingerprint.of(**FACTS)


@pytest.fixture(scope="module")
def engine(market_address):
    made = ModelEngine(market_address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokens(engine):
    tokens = list(range(100, 116))
    engine.publish(tokens, [0, 1, 2, 3])
    return tokens


def unchanged(engine, tokens) -> bool:
    """What was on offer still is."""
    return engine.take(tokens, [10, 11, 12, 13]) == 4


@pytest.mark.parametrize(
    ("slots", "error"),
    [
        ([0, 1], "2 block ids for 4 whole blocks"),
        ([4, 5, 6, SLOTS], f"slots 0 to {SLOTS - 1}"),
        ([4, 5, 6, -1], "out of range"),
        ([4, 5, 4, 6], "given twice"),
        ([4, 5, 6, 7.0], "plain integers"),
        ("4567", "list of integers"),
        (None, "list of integers"),
    ],
)
def test_publish_with_bad_slots(engine, tokens, slots, error):
    with pytest.raises(SlotError, match=error):
        engine.market.publish(list(range(500, 516)), slots)
    assert unchanged(engine, tokens)


@pytest.mark.parametrize(
    "bad", [[1.5] * 8, "12345678", [2**31] * 8, [[1, 2], [3, 4]], np.zeros((2, 4), np.int32), [True] * 8, None, 7]
)
def test_bad_tokens(engine, tokens, bad):
    for call in (lambda: engine.market.publish(bad, [4, 5]), lambda: engine.market.match(bad)):
        with pytest.raises(TokenError, match="tokens"):
            call()
    assert unchanged(engine, tokens)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda t: np.array(t, np.int64), tuple])
def test_good_tokens_of_every_kind(engine, tokens, kind):
    assert engine.market.match(kind(tokens)).blocks == 4


@pytest.mark.parametrize(
    ("slots", "first", "error"),
    [
        ([10, 10], 0, "given twice"),
        ([10, SLOTS], 0, "out of range"),
        ([10] * 5, 0, "at most 4"),
        ([10, 11], 3, "at most 1"),
        ([10], -1, "hit of 4"),
    ],
)
def test_fetch_with_bad_slots_retires_nothing(engine, tokens, slots, first, error):
    hit = engine.market.match(tokens)
    before = engine.market._control.generations(range(SLOTS)).tolist()
    with pytest.raises(SlotError, match=error):
        engine.market.fetch(hit, slots, first)
    assert engine.market._control.generations(range(SLOTS)).tolist() == before
    assert unchanged(engine, tokens)


def test_fetch_of_something_that_is_no_hit(engine):
    with pytest.raises(MisuseError, match=r"match\(\)"):
        engine.market.fetch(4, [1])


def test_retire_with_bad_slots(engine, tokens):
    for bad in ([SLOTS], [0, 0], ["0"]):
        with pytest.raises(SlotError):
            engine.market.retire(bad)
    assert unchanged(engine, tokens)


def test_staged_without_a_staging_pool(engine):
    with pytest.raises(MisuseError, match="staging_bytes"):
        engine.market.publish(list(range(700, 708)), [20, 21], staged=True)


def test_a_staging_pool_of_less_than_a_block(engine, market_address):
    with pytest.raises(LayoutError, match=str(engine.cache.slot_bytes)):
        kvmarket.connect(engine.cache, FINGERPRINT, staging_bytes=1, address=market_address)


def test_connect_with_wrong_things(engine, market_address):
    with pytest.raises(LayoutError, match="PagedCache"):
        kvmarket.connect(engine.layers, FINGERPRINT, address=market_address)
    with pytest.raises(FingerprintError, match=r"Fingerprint\.of"):
        kvmarket.connect(engine.cache, "llama", address=market_address)
    with pytest.raises(MisuseError, match="tenant"):
        kvmarket.connect(engine.cache, FINGERPRINT, tenant=3, address=market_address)


@pytest.mark.parametrize("change", ["dtype", "block_size", "shape"])
def test_caches_that_do_not_fit_under_one_fingerprint(market_address, change):
    shape = (8, 2, BLOCK, 24) if change != "shape" else (8, 2, BLOCK, 26)
    dtype = torch.int16 if change != "dtype" else torch.float16
    other = kvmarket.PagedCache(
        [torch.zeros(shape, dtype=dtype) for _ in range(2)], block_size=BLOCK if change != "block_size" else 2 * BLOCK
    )
    engine = ModelEngine(market_address)
    with pytest.raises(LayoutError, match="fingerprint"):
        kvmarket.connect(other, FINGERPRINT, address=market_address)
    engine.close()


def test_a_pool_that_cannot_be_mapped_is_counted_and_avoided(market_address, monkeypatch):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address)
    tokens = list(range(16))
    owner.publish(tokens, [0, 1, 2, 3])
    until(lambda: reader.market.match(tokens).blocks == 4)

    def refuse(*_):
        raise PeerAccessError("GPU 1 cannot reach memory of GPU 0; see nvidia-smi topo -p2p r")

    monkeypatch.setattr("kvmarket.market.mappings.GenerationReader", refuse)
    assert reader.market.fetch(reader.market.match(tokens), [0, 1, 2, 3]).wait() == 0
    assert any(name.startswith("pool_unreachable{PeerAccessError") for name in counters.snapshot())
    assert reader.market.match(tokens).blocks == 0, "not matched again"
    owner.close()
    reader.close()


def test_no_room_in_shared_memory(monkeypatch, own_address):
    real = os.statvfs("/dev/shm")

    class Full:
        f_bavail, f_frsize = 1, real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _path: Full)
    with pytest.raises(SharedMemoryError, match="--shm-size"):
        ModelEngine(own_address)


def test_memory_of_another_kind():
    from kvmarket.transport import ShmMemory, export, map_memory

    with pytest.raises(TransportError, match="one kind of device"):
        map_memory(ShmMemory(()), torch.device("cuda", 0))
    with pytest.raises(TransportError, match="CPU or CUDA"):
        export([torch.empty(4, device="meta").untyped_storage()])


def test_why_a_handle_does_not_open(monkeypatch):
    """CUDA says little; the message tells missing peer access from a namespace that is not shared."""
    monkeypatch.setattr(cuda_ipc, "device_uuid", lambda _device: "GPU-b")
    device = torch.device("cuda", 0)
    far, near = (CudaMemory(Process.current(), uuid, ()) for uuid in ("GPU-a", "GPU-b"))
    error = RuntimeError("CUDA error: peer access is not supported between these two devices")
    assert isinstance(cuda_ipc._explain(error, far, device), PeerAccessError)
    assert "--ipc=host" in str(cuda_ipc._explain(RuntimeError("CUDA error: invalid resource handle"), near, device))


def test_equal_numbers_in_two_containers_are_told_so():
    """CUDA itself says "invalid device context": it takes the memory for one of this very process."""
    me = Process.current()
    memory = CudaMemory(msgspec.structs.replace(me, namespace=me.namespace + 1), "GPU-a", ())
    with pytest.raises(TransportError, match=f"both have the process number {me.pid}.*--pid=host"):
        memory.map(torch.device("cuda", 0))


def test_every_error_is_one_of_ours():
    from kvmarket import errors

    drawn = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, KVMarketError)
            assert name in drawn, f"{name} is missing in the tree at the top of errors.py"


def test_the_command_line_says_errors_in_one_line(tmp_path):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "kvmarket", "top", "--once", "--address", str(tmp_path / "nobody")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 2
    assert "AddressError" in done.stderr
    assert "Traceback" not in done.stderr
