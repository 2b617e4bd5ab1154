"""Engines with an fp8 KV cache. Those with MLA are not run here: on a CPU vLLM switches prefix caching off for them."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from torch.backends.cpu import get_cpu_capability

from bench.engines.process import GPUS, EngineProcess
from tests.vllm_hook.engines.model import BLOCK, VOCAB, llm_options, save_tiny_llama
from tests.vllm_hook.engines.node import VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not GPUS and get_cpu_capability() != "AVX512", reason="vLLM has fp8 on CPUs with AVX-512 only"),
]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[EngineProcess, EngineProcess]]:
    """Two engines of one market."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        llm = {**llm_options(), "kv_cache_dtype": "fp8"}
        model, address = save_tiny_llama(folder / "model"), str(folder / "s")
        options = {"model": model, "address": address, "llm": llm}
        a, b = (stack.enter_context(EngineProcess(folder / f"{name}.log", options)) for name in "ab")
        a.wait()
        b.wait()
        yield a, b


def test_imported_blocks_give_the_tokens_that_computed_ones_do(pair: tuple[EngineProcess, EngineProcess]):
    a, b = pair
    chance = random.Random(5)
    for _ in range(4):
        prompts = [[chance.randrange(VOCAB) for _ in range(chance.randrange(40, 300))] for _ in range(3)]
        computed = a.generate(prompts, 32)
        assert computed["cached"] == [0, 0, 0]
        time.sleep(VISIBLE)
        for prompt, tokens in zip(prompts, computed["tokens"], strict=True):
            imported, own = b.generate([prompt], 32), a.generate([prompt], 32)
            assert imported["cached"] == own["cached"] == [(len(prompt) - 1) // BLOCK * BLOCK]
            assert imported["tokens"] == own["tokens"]
            assert GPUS or imported["tokens"] == [tokens], "a GPU rounds otherwise where it computes a whole prompt"
    counters = b.ask("counters")
    assert counters["vllm_tokens_imported"] == counters["vllm_tokens_asked"] > 0
