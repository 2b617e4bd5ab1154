"""``kvmarket lend --host-gb`` for engines on GPUs: blocks go to the host's memory and come back, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from kvmarket import counters
from tests.lend.lends import churn, lent
from tests.model_engine import BLOCK, ModelEngine, matched, prompt, until

pytestmark = pytest.mark.gpu
GB = 0.0002  # about 250 blocks


@contextmanager
def lender(address: str, *memory: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that lends this memory; it ends with 0 unless it was killed. If a test fails, it says where it is."""
    command = [sys.executable, "-X", "faulthandler", "-m", "kvmarket.cli", "lend", "--address", address, *memory]
    with subprocess.Popen(command) as process:
        failed = True
        try:
            yield process
            failed = False
        finally:
            if failed:
                process.send_signal(signal.SIGABRT)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def kept(engine: ModelEngine, *prompts: list[int]) -> None:
    """Wait until a lender offers all blocks of the prompts, and nobody else does."""
    until(lambda: all(_offers(engine, each) for each in prompts), 60)


def _offers(engine: ModelEngine, tokens: list[int]) -> int:
    space = engine.market._control._client._replica.space
    lenders = [name for name, pool in space.pools.items() if pool.record.lent]
    others = [name for name in space.pools if name not in lenders]
    return sum(len(run.slots) for run in space.match(np.array(tokens, np.int32), "", 0, others)) == len(tokens) // BLOCK


@pytest.fixture
def two(own_address: str) -> Iterator[tuple[ModelEngine, ModelEngine]]:
    engines = ModelEngine(own_address, "cuda"), ModelEngine(own_address, "cuda")
    yield engines
    for engine in engines:
        engine.close()


def test_blocks_come_back_from_the_host(own_address, two):
    computes, reads = two
    with lender(own_address, "--host-gb", str(GB)) as process:
        prompts = [prompt(7 * BLOCK, seed) for seed in range(4)]
        for at, tokens in enumerate(prompts):
            computes.publish(tokens, list(range(7 * at, 7 * at + 7)))
        kept(reads, *prompts)
        churn(computes)
        before = counters.snapshot().get("blocks_fetched_from_lenders", 0)
        for tokens in prompts:
            assert all(pool.far for pool in matched(reads, tokens).pools.values()) and lent(reads, tokens)
            until(lambda tokens=tokens: reads.take(tokens, [3, 30, 5, 9, 1, 28, 20]) == 7)
            churn(reads)
        assert counters.snapshot()["blocks_fetched_from_lenders"] - before == 28
        os.kill(process.pid, signal.SIGUSR1)
        until(lambda: not reads.market.match(prompts[0]).blocks)
        os.kill(process.pid, signal.SIGUSR2)
        computes.publish(prompts[0], list(range(7)))
        kept(reads, prompts[0])
        churn(computes)
        hit = reads.market.match(prompts[0])
        process.kill()
        process.wait()
        until(lambda: not reads.market.match(prompts[0]).blocks)
        assert reads.market.fetch(hit, list(range(7))).wait() == 0


def test_the_host_is_read_where_the_gpu_has_given_up(own_address, two):
    computes, reads = two
    with lender(own_address, "--gpu", "0", "--gb", str(GB / 20), "--host-gb", str(GB)):
        prompts = [prompt(7 * BLOCK, seed) for seed in range(4)]
        for at, tokens in enumerate(prompts):
            computes.publish(tokens, list(range(7 * at, 7 * at + 7)))
        kept(reads, *prompts)
        churn(computes)
        far = 0
        for tokens in prompts:
            until(lambda tokens=tokens: reads.take(tokens, [3, 30, 5, 9, 1, 28, 20]) == 7)
            far += all(pool.far for pool in matched(reads, tokens).pools.values())
            churn(reads)
        assert 1 <= far <= 3, "the GPU has room for one or two prompts"
