"""A vLLM engine that starts while the service of its market speaks another version: it serves, and joins later."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from pathlib import Path

import pytest

from bench.engines.process import EngineProcess
from kvmarket.registry.protocol.messages import PROTOCOL
from tests.other_version import service_of_another_version
from tests.vllm_hook.engines.model import BLOCK, VOCAB, llm_options, save_tiny_llama
from tests.vllm_hook.engines.node import VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ON, OFF_FOR_NOW = "kvmarket is on: ", "kvmarket is off for now: it could not join the market; "


def beside(address: str) -> str:
    """Where engines meet while those of another version have the address: here that is taken as well."""
    return f"{address}.{PROTOCOL.decode().strip().rpartition('/')[2]}"


def said(engine: EngineProcess, what: str) -> bool:
    return what in engine.log.read_text(errors="replace")


def test_an_engine_joins_when_the_service_of_another_version_has_gone():
    chance = random.Random(5)
    before, running, after = ([chance.randrange(VOCAB) for _ in range(8 * BLOCK + 1)] for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as name:
        folder = Path(name)
        model, address = save_tiny_llama(folder / "model"), str(folder / "s")
        options = {"model": model, "address": address, "llm": {**llm_options(), "enforce_eager": True}}
        with EngineProcess(folder / "a.log", options) as a:
            with service_of_another_version(address), service_of_another_version(beside(address)):
                a.wait()
                assert said(a, OFF_FOR_NOW) and not said(a, ON), a.tail()
                assert said(a, "and goes on trying: VersionError: ") and said(a, "or give each its own address"), (
                    a.tail()
                )
                first = a.generate([before], 8)["tokens"]
                a.tell("generate", prompts=[running], tokens=700)  # it still runs when the market is joined
            end = time.monotonic() + 60
            while not said(a, ON):
                assert time.monotonic() < end, a.tail()
                time.sleep(0.1)
            a.answer()
            shared = a.generate([after], 8)["tokens"]
            with EngineProcess(folder / "b.log", options) as b:
                b.wait()
                assert said(b, ON) and not said(b, OFF_FOR_NOW), b.tail()
                time.sleep(VISIBLE)
                found = b.generate([after], 8)
                assert found == {**found, "tokens": shared, "cached": [8 * BLOCK]}
                found = b.generate([before], 8)
                assert found == {**found, "tokens": first, "cached": [0]}, "from before it had joined"
