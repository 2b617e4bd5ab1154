"""Real vLLM engines and a lender: what one computed is found when its pages are reused, and when it was killed.

It comes first in the folder: later tests leave engines behind that share no more.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench.engines.process import GPUS, child_environment
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from tests.vllm_hook.engines.node import Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
MEMORY = ("--gpu", "0", "--gb", "0.5") if GPUS else ("--host-gb", "0.2")


@pytest.fixture
def lender(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A lender that is in the space of the engines; it must end with 0."""
    command = [sys.executable, "-m", "kvmarket.cli", "lend", "--address", node.address, *MEMORY]
    with subprocess.Popen(command, env=child_environment({})) as process:
        end = time.monotonic() + 60
        while not any(member.lends for member in ask_status(Address(node.address)).members):
            assert time.monotonic() < end and process.poll() is None, "the lender has not joined"
            time.sleep(0.05)
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_pages_that_were_reused_are_imported_from_the_lender(node: Node, lender: subprocess.Popen[bytes]):
    prompt, mine = node.prompt(300), node.prompt(300)
    node.offered(node.a, prompt)
    node.offered(node.a, mine, salt="x")
    node.churn(node.a)
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.agrees(node.b, [[*mine, 1]], [0], salt="y")
    node.agrees(node.b, [[*mine, 1]], [0])
    node.agrees(node.b, [[*mine, 1]], [whole(300)], salt="x")
    node.agrees(node.a, [[*prompt, 2]], [whole(300)])


def test_an_engine_that_was_killed_is_outlived_and_finds_its_prefixes_again(
    node: Node, lender: subprocess.Popen[bytes]
):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.a.kill()
    node.a.close()
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.churn(node.b)
    node.start("a").wait()
    node.agrees(node.a, [[*prompt, 2]], [whole(300)])
