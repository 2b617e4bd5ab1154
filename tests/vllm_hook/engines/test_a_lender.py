"""Real vLLM engines and a lender: what one computed is found when its pages are reused, and when it was killed.

It comes first in the folder: later tests leave engines behind that share no more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.engines.process import GPUS, EngineProcess, child_environment
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from tests.model_engine import until
from tests.vllm_hook.engines.node import Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MEMORY = {"gpu": ("--gpu", "0", "--gb", "0.5"), "host": ("--host-gb", "0.2")}
MAPPED_SECONDS = 1.0  # within which an engine on a GPU has mapped memory of the host
Meets = Callable[[EngineProcess, EngineProcess], None]


@pytest.fixture(params=["gpu", "host"] if GPUS else ["host"])
def meets(node: Node, request: pytest.FixtureRequest) -> Iterator[Meets]:
    """A lender that is in the space of the engines; it must end with 0.

    Call it with an engine that is to import from the lender, and another one: an engine on a GPU computes what it would
    import first from memory of the host, and maps that memory meanwhile.
    """

    def meets(reads: EngineProcess, computes: EngineProcess) -> None:
        if GPUS and request.param == "host":
            prompt = node.prompt(300)
            node.offered(computes, prompt)
            node.churn(computes)
            node.agrees(reads, [[*prompt, 1]], [0])
            time.sleep(MAPPED_SECONDS)

    command = [sys.executable, "-m", "kvmarket.cli", "lend", "--address", node.address, *MEMORY[request.param]]
    with subprocess.Popen(command, env=child_environment({})) as process:
        try:
            end = time.monotonic() + 60
            while not any(member.lends for member in ask_status(Address(node.address)).members):
                assert time.monotonic() < end and process.poll() is None, "the lender has not joined"
                time.sleep(0.05)
            yield meets
            process.send_signal(signal.SIGUSR1)
            until(lambda: not any(maps_of(engine, process) for engine in (node.a, node.b)), 5)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def maps_of(engine: EngineProcess, lender: subprocess.Popen[bytes]) -> bool:
    """Whether an engine has memory of the host mapped that is the lender's. Nothing but a request wakes the engine."""
    return f"/torch_{lender.pid}_" in Path(f"/proc/{engine.pid}/maps").read_text()


def test_pages_that_were_reused_are_imported_from_the_lender(node: Node, meets: Meets):
    meets(node.b, node.a)
    meets(node.a, node.b)
    prompt, mine = node.prompt(300), node.prompt(300)
    node.offered(node.a, prompt)
    node.offered(node.a, mine, salt="x")
    node.churn(node.a)
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.agrees(node.b, [[*mine, 1]], [0], salt="y")
    node.agrees(node.b, [[*mine, 1]], [0])
    node.agrees(node.b, [[*mine, 1]], [whole(300)], salt="x")
    node.agrees(node.a, [[*prompt, 2]], [whole(300)])


def test_an_engine_that_was_killed_is_outlived_and_finds_its_prefixes_again(node: Node, meets: Meets):
    meets(node.b, node.a)
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.a.kill()
    node.a.close()
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.churn(node.b)
    node.start("a").wait()
    meets(node.a, node.b)
    node.agrees(node.a, [[*prompt, 2]], [whole(300)])
