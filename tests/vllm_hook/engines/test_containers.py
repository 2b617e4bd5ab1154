"""Two vLLM engines in containers that share one directory and nothing else: they share blocks."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.engines.process import EngineProcess
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from tests.container import apart
from tests.model_engine import until
from tests.vllm_hook.engines.model import BLOCK, VOCAB, llm_options, save_tiny_llama
from tests.vllm_hook.engines.node import VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(apart() is None, reason="this user may make no namespaces"),
]


def test_engines_in_containers_share_until_one_is_killed():
    chance = random.Random(7)
    prompt, other = ([chance.randrange(VOCAB) for _ in range(6 * BLOCK + 1)] for _ in range(2))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        model, address = save_tiny_llama(folder / "model"), str(folder / "s")
        options = {"model": model, "address": address, "llm": {**llm_options(), "enforce_eager": True}}
        a, b = (
            stack.enter_context(EngineProcess(folder / f"{name}.log", options, within=apart(number) or ()))
            for number, name in enumerate("ab")
        )
        a.wait()
        b.wait()
        computed = a.generate([prompt], 16)
        time.sleep(VISIBLE)
        found = b.generate([prompt], 16)
        assert found == {**found, "tokens": computed["tokens"], "cached": [6 * BLOCK]}
        computed = b.generate([other], 16)
        time.sleep(VISIBLE)
        found = a.generate([other], 16)
        assert found == {**found, "tokens": computed["tokens"], "cached": [6 * BLOCK]}
        place = Address(address)
        assert len({member.space for member in ask_status(place).members}) == 1 and b.ask("counters")["blocks_fetched"]
        assert b.ask("found", prompt=prompt)["blocks"] == 6
        a.kill()
        start = time.monotonic()
        until(lambda: b.ask("found", prompt=prompt)["blocks"] == 0, 60)
        print(f"its end was heard of within {time.monotonic() - start:.2f} s")
        later = [chance.randrange(VOCAB) for _ in range(2 * BLOCK + 1)]
        assert b.generate([later], 4)["cached"] == [0]
