"""Signals reach `kvmarket lend` whatever a compiler does with handlers, and the service that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from kvmarket.cli.signals import HEEDED
from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address
from tests.cli.test_lend import lender, lent_offers, members
from tests.model_engine import BLOCK, ModelEngine, prompt, until

COMPILES = """
import os, signal, sys
from kvmarket.cli.signals import heed, hold
if sys.argv[1] == "heed":
    hold()
    heed(dict.fromkeys((signal.SIGUSR1, signal.SIGTERM), lambda: os.write(1, b"heeded ")), last=[signal.SIGTERM])
else:
    signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"heeded "))
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tests.cli.kernel import fill
source = ASTSource(fill, {"x": "*i32", "n": "i32", "B": "constexpr"}, {(2,): 128})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
os.kill(os.getpid(), signal.SIGUSR1)
import time
time.sleep(0.5)
os.write(1, b"end")
"""


def blocked(pid: int) -> list[set[int]]:
    """The signals that each thread of a process blocks."""
    found = []
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigBlk"))
        mask = int(line.split()[1], 16)
        found.append({number for number in range(1, 65) if mask >> (number - 1) & 1})
    return found


def test_every_thread_of_a_lender_blocks_them_and_its_service_does_not(own_address):
    engine = ModelEngine(own_address)
    with lender(own_address, "--host-gb", "0.001") as process:
        until(lambda: members(own_address).get(process.pid))
        threads = blocked(process.pid)
        waits = [each for each in threads if not each & set(HEEDED)]
        assert len(waits) == 1, "the kernel shows them as not blocked where a thread waits for them"
        assert len(threads) > 3 and all(each >= set(HEEDED) for each in threads if each not in waits)
        engine.close()
        service = ask_status(Address(own_address)).service.pid
        os.kill(service, signal.SIGKILL)
        until(lambda: process.pid in _members(own_address))
        service = ask_status(Address(own_address)).service.pid
        assert all(not each & set(HEEDED) for each in blocked(service)), "the lender has started it"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def _members(address: str) -> dict[int, bool]:
    try:
        return members(address)
    except RegistryError:  # no service lives
        return {}


def test_memory_is_given_back_and_lent_again_as_often_as_the_signals_come(own_address):
    engine, tokens = ModelEngine(own_address), prompt(6 * BLOCK, 7)
    with lender(own_address, "--host-gb", "0.001") as process:
        for _ in range(3):
            until(lambda: members(own_address).get(process.pid))
            engine.publish(tokens, list(range(6)))
            until(lambda: lent_offers(own_address) == 6)
            process.send_signal(signal.SIGUSR1)
            until(lambda: process.pid not in members(own_address))
            process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    engine.close()


def test_they_come_after_triton_has_compiled(tmp_path):
    """LLVM takes the handler of SIGUSR1: where this changes, `hold` and `heed` may go."""
    assert _compiled("handler", tmp_path / "one") == "end"
    assert _compiled("heed", tmp_path / "other") == "heeded end"


def _compiled(how: str, cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, how], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout
