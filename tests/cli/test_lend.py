"""``kvmarket lend``, as a process: what was computed outlives an engine, and nothing outlives the lender."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.lend.lending import LATER_SECONDS
from kvmarket.processes import leftovers
from kvmarket.registry.protocol.address import Address
from tests.model_engine import BLOCK, ModelEngine, Peer, prompt, until


@contextmanager
def lender(address: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "kvmarket.cli", "lend", "--address", address, *options]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # which is slow
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def members(address: str) -> dict[int, bool]:
    """The members of the market by their process, and whether they lend."""
    return {member.pid: member.lends for member in ask_status(Address(address)).members}


def test_an_engine_that_was_killed_is_outlived_and_the_lender_leaves_nothing_behind(own_address):
    before = set(Path("/dev/shm").iterdir())
    engine, tokens = Peer(own_address), prompt(6 * BLOCK, 7)
    with lender(own_address, "--host-gb", "0.001") as process:
        until(lambda: members(own_address).get(process.pid))
        engine.publish(tokens, list(range(6)))
        until(lambda: lent_offers(own_address) == 6)
        engine.kill()
        again = ModelEngine(own_address)
        until(lambda: again.take(tokens, list(range(6))) == 6)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        until(lambda: again.market.match(tokens).blocks == 0)
        assert list(members(own_address)) == [os.getpid()]
        again.close()
    leftovers.sweep()
    left = {path.name for path in set(Path("/dev/shm").iterdir()) - before}
    assert not {name for name in left if f"_{process.pid}_" in name or f"-{process.pid}-" in name}


def lent_offers(address: str) -> int:
    return sum(member.offers for member in ask_status(Address(address)).members if member.lends)


def test_a_lender_that_is_killed_costs_hits_and_nothing_else(own_address):
    engine, tokens = ModelEngine(own_address), prompt(4 * BLOCK, 8)
    with lender(own_address, "--host-gb", "0.001") as process:
        until(lambda: members(own_address).get(process.pid))
        engine.publish(tokens, [0, 1, 2, 3])
        until(lambda: lent_offers(own_address) == 4)
        engine.market.retire([0, 1, 2, 3])
        until(lambda: engine.take(tokens, [4, 5, 6, 7]) == 4)
        hit = engine.market.match(tokens)
        process.kill()
        process.wait()
        assert engine.market.fetch(hit, [8, 9, 10, 11]).wait() in (0, 4), "whole, or found dead"
        until(lambda: engine.market.match(tokens).blocks == 0)
        assert engine.publish(tokens, [0, 1, 2, 3]) == 4
    engine.close()


def test_two_lenders_share_what_there_is_to_keep(own_address):
    """Each prompt falls to one of them: the other one waits, and then does not copy what is offered already."""
    engine = ModelEngine(own_address)
    with lender(own_address, "--host-gb", "0.001") as one, lender(own_address, "--host-gb", "0.001") as other:
        until(lambda: {one.pid, other.pid} <= members(own_address).keys())
        time.sleep(LATER_SECONDS)  # each hears of the other one
        for seed in range(8):
            engine.publish(prompt(3 * BLOCK, seed), [3 * seed, 3 * seed + 1, 3 * seed + 2])
        until(lambda: lent_offers(own_address) >= 24)
        time.sleep(2 * LATER_SECONDS)
        offers = [member.offers for member in ask_status(Address(own_address)).members if member.lends]
        assert sum(offers) == 24 and min(offers) > 0
    engine.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "no memory to lend"),
        (("--gpu", "0"), "without --gb"),
        (("--gb", "1", "--gpu", "99"), "no GPU 99"),
        (("--host-gb", "0"), "0 bytes"),
    ],
)
def test_without_memory_to_lend_it_says_what_to_give(own_address, options, said):
    with lender(own_address, *options) as process:
        assert process.stderr is not None and process.wait(30) == 2
        assert said in process.stderr.read().decode().replace("\n", " ")
