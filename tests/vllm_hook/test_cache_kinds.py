"""Engines whose KV is of another kind than that of the other tests: fp8, or one latent for all heads (MLA)."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.vllm_hook.model import VOCAB, llm_options, save_tiny_llama, save_tiny_mla
from tests.vllm_hook.processes import HERE, EngineProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
VISIBLE = 0.3  # seconds after which an offer has surely reached the market
KINDS: dict[str, tuple[Callable[[Path], str], int, dict[str, object]]] = {
    "fp8": (save_tiny_llama, 32, {"kv_cache_dtype": "fp8"}),
    # vLLM's CPU build has MLA with blocks of 16 alone
    "MLA": (save_tiny_mla, 16, {"block_size": 16, "num_gpu_blocks_override": 128}),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[EngineProcess, EngineProcess, int]]:
    """Two engines of one market, and how many tokens their blocks have."""
    save, block, more = KINDS[request.param]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        llm = {**llm_options(), **more}
        options = {"model": save(folder / "model"), "address": str(folder / "s"), "llm": llm, "path": [str(HERE)]}
        engines = [stack.enter_context(EngineProcess(folder / f"{name}.log", options)) for name in "ab"]
        for engine in engines:
            engine.wait()
        yield engines[0], engines[1], block


def test_imported_blocks_give_the_tokens_that_computed_ones_do(pair: tuple[EngineProcess, EngineProcess, int]):
    a, b, block = pair
    chance = random.Random(5)
    for _ in range(4):
        prompts = [[chance.randrange(VOCAB) for _ in range(chance.randrange(40, 240))] for _ in range(3)]
        computed = a.generate(prompts, 32)
        time.sleep(VISIBLE)
        imported = b.generate(prompts, 32)
        assert computed["cached"] == [0, 0, 0]
        assert imported["cached"] == [(len(prompt) - 1) // block * block for prompt in prompts]
        assert imported["tokens"] == computed["tokens"]
    counters = b.ask("counters")
    assert counters["vllm_tokens_imported"] == counters["vllm_tokens_asked"] > 0
