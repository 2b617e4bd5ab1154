"""Engines that speculate, by ngrams: many drafts are rejected, many accepted, and blocks of the latter alone shared."""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.engines.process import GPUS, EngineProcess
from tests.vllm_hook.engines.model import BLOCK, llm_options, save_tiny_llama
from tests.vllm_hook.engines.node import VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
VOCAB = 61  # so few that the model repeats itself
NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
LAST_STEP = 8  # tokens: more than one step computes


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[EngineProcess, EngineProcess, EngineProcess]]:
    """Two engines that speculate, of one market, and one that does neither."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        model, address = save_tiny_llama(folder / "model", vocab=VOCAB, spread=0.1), str(folder / "s")

        def start(name: str, **llm: object) -> EngineProcess:
            connector = {"address": address} if llm else {}
            options = {"model": model, "llm": {**llm_options(), **llm}, **connector}
            return stack.enter_context(EngineProcess(folder / f"{name}.log", options))

        speculating = {"speculative_config": NGRAM, "disable_log_stats": False}
        started = start("a", **speculating), start("b", **speculating), start("plain")
        for engine in started:
            engine.wait()
        yield started


def test_blocks_of_accepted_tokens_are_shared_and_right(engines):
    a, b, plain = engines
    judge = a if GPUS else plain  # a GPU rounds otherwise where it computes drafts beside each other
    chance = random.Random(3)
    for number in range(4):
        prompts = []
        odd = chance.randrange(BLOCK)
        for _ in range(3):
            phrase = [chance.randrange(VOCAB) for _ in range(chance.randrange(5, 60))]
            prompts.append((phrase * 60)[: odd + BLOCK * chance.randrange(1, 8)])
        tokens = 5 * BLOCK - odd  # with its last token, whose KV is a rejected draft's, the last block would be whole
        if number % 2 == 0:
            # vLLM does not keep a block that the last step makes whole: others that run may be given its page
            tokens = BLOCK * chance.randrange(2, 6) + chance.randrange(LAST_STEP, BLOCK) - odd
        outputs = a.generate(prompts, tokens)["tokens"]
        assert GPUS or outputs == plain.generate(prompts, tokens)["tokens"]
        time.sleep(VISIBLE)
        turns = [[*prompt, *output, 7] for prompt, output in zip(prompts, outputs, strict=True)]
        for turn in turns:  # one at a time: loads that end at different steps would make other batches
            answer, right = b.generate([turn], 32), judge.generate([turn], 32)
            assert answer["cached"] == [(len(turn) - 2) // BLOCK * BLOCK], "all but the last token's KV"
            assert answer["tokens"] == right["tokens"], (number, len(turn), answer, right)
    counters = b.ask("counters")
    assert counters["vllm_tokens_imported"] == counters["vllm_tokens_asked"] > 0
    drafts = a.ask("drafts")
    assert 100 < drafts["accepted"] < drafts["draft"] - 100, drafts
