"""What a fetch makes of bytes that arrived without being those that were offered."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvmarket import counters
from kvmarket.errors import SlotError
from kvmarket.market.fetch import Fetch, Piece
from kvmarket.market.offer import Offers
from kvmarket.pool import GenerationReader, Generations
from kvmarket.ways import Started, cpu
from tests.model_engine import BLOCK, ModelEngine, matched, prompt


def test_bytes_that_do_not_have_the_checksum_of_their_offer_are_not_valid(market_address):
    owner = ModelEngine(market_address, staging_bytes=1 << 20)
    reader = ModelEngine(market_address)
    tokens = prompt(16, 40)
    owner.publish(tokens, [0, 1, 2, 3], staged=True)
    hit = matched(reader, tokens)
    assert all(run.checksums is not None and run.checksums.all() for run in hit.runs)
    owner.market._staging.slots.segments[0][2 * owner.cache.slot_bytes + 5] ^= 1  # no generation says so
    assert reader.market.fetch(hit, [0, 1, 2, 3]).wait() == 2
    corrupt = [name for name in counters.snapshot() if name.startswith("fetch_corrupt")]
    assert corrupt, "reported"
    owner.close()
    reader.close()


def test_what_does_not_count_is_counted_once_and_under_its_own_name(market_address, monkeypatch):
    """A block that was retired meanwhile is not one whose bytes are wrong, even if they are."""
    owner, reader = ModelEngine(market_address, staging_bytes=1 << 20), ModelEngine(market_address)
    tokens = prompt(24, 45)
    owner.publish(tokens, list(range(6)), staged=True)
    hit = matched(reader, tokens)
    memory = owner.market._staging.slots.segments[0]
    for block in (2, 3, 4):
        memory[block * owner.cache.slot_bytes + 5] ^= 1

    def copy(*arguments, real=cpu.copy_blocks, **options):
        real(*arguments, **options)
        owner.market._control.retire([1, 2], staged=True)

    def counted(name: str) -> int:
        return sum(n for key, n in counters.snapshot().items() if key.startswith(name))

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    names = ("fetch_stale", "fetch_corrupt", "blocks_fetched", "bytes_fetched")
    before = [counted(name) for name in names]
    moved = reader.market.fetch(hit, [0, 1, 2, 3, 4, 5])
    assert moved.wait() == 1
    assert moved.valid.tolist() == [True, False, False, False, False, True]
    after = [counted(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 2, 1, owner.cache.slot_bytes]
    owner.close()
    reader.close()


def test_an_error_of_the_device_ends_a_fetch():
    """Whoever polls must not poll for ever."""

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    moved = Fetch(3, [], Started(fail, fail, None))
    assert moved.valid.tolist() == []
    assert moved.done()
    assert moved.wait() == 0
    assert moved.valid.tolist() == [False] * 3


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_without_a_sum_or_a_checksum_the_generation_alone_decides(summed, offered):
    generations = Generations(4)
    slots = np.array([1, 2])
    checksums = np.array([7, 7], np.uint64) if offered else None
    offers = Offers("pool", generations.epoch, slots, generations.read(slots), checksums)
    piece = Piece(GenerationReader(generations.file, 4), offers)
    generations.raise_slots(np.array([2]))
    valid = piece.valid(np.array([1, 1], np.int64) if summed else None)
    assert valid.tolist() == [not (summed and offered), False]
    generations.close()


def test_without_checksums_none_are_offered(market_address):
    owner, reader = ModelEngine(market_address, staging_bytes=1 << 20, checksums=False), ModelEngine(market_address)
    tokens = prompt(16, 41)
    owner.publish(tokens, [0, 1, 2, 3], staged=True)
    assert all(run.checksums is None for run in matched(reader, tokens).runs)
    assert reader.take(tokens, [0, 1, 2, 3]) == 4
    owner.close()
    reader.close()


def test_threads_that_ask_at_once_settle_a_fetch_once(market_address):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address)
    tokens = prompt(16, 42)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    for _ in range(20):
        before, nbytes = (counters.snapshot().get(name, 0) for name in ("blocks_fetched", "bytes_fetched"))
        moved = reader.market.fetch(hit, [0, 1, 2, 3])
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda _, moved=moved: moved.wait(), range(4))) == [4] * 4
        assert moved.done() and moved.valid.tolist() == [True] * 4
        assert counters.snapshot()["blocks_fetched"] == before + 4
        assert counters.snapshot()["bytes_fetched"] == nbytes + 4 * reader.cache.slot_bytes
        assert 0 < moved.seconds < 60
    owner.close()
    reader.close()


def test_block_ids_may_be_changed_as_soon_as_the_call_returns(market_address, monkeypatch):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address)
    tokens, gate = prompt(16, 43), threading.Event()
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    real = cpu.copy_blocks

    def copy(*arguments, **options):
        gate.wait()
        real(*arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    ids = np.array([4, 5, 6, 7])
    moved = reader.market.fetch(hit, ids)
    ids[:] = 0
    gate.set()
    assert moved.wait() == 4
    assert all(reader.holds(4 + block, tokens[: (block + 1) * BLOCK]) for block in range(4))
    owner.close()
    reader.close()


def test_an_error_that_nobody_foresaw_costs_one_fetch(market_address, monkeypatch):
    owner, reader = ModelEngine(market_address), ModelEngine(market_address)
    tokens = prompt(16, 44)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "copy_blocks", lambda *_arguments, **_options: int("no number"))
        moved = reader.market.fetch(hit, [4, 5, 6, 7])
        assert moved.wait() == 0 and moved.done()
    with pytest.raises(SlotError, match="block id 4 holds no block"):
        reader.market.publish(tokens, [4, 5, 6, 7])
    assert reader.take(tokens, [4, 5, 6, 7]) == 4, "the market goes on"
    owner.close()
    reader.close()
