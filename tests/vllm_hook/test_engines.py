"""Real vLLM engines in processes of their own: what is imported, and whether the tokens stay what they would be.

The engines are started once and used by all tests, in order; the last test kills one of them. On a machine with GPUs
they run there, with CUDA graphs: the importing engine on another GPU than the first one where there are two.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.vllm_hook.model import BLOCK, VOCAB, llm_options, save_tiny_llama
from tests.vllm_hook.processes import HERE, EngineProcess
from tests.vllm_hook.versions import INSTALLED, interpreters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
VISIBLE = 1.0  # seconds after which an offer has surely reached the market, on a busy machine too


@dataclass
class Node:
    """The engines of one node: `a` and `b`; `c` with a gate; `other` has another model; `plain` no connector."""

    a: EngineProcess
    b: EngineProcess
    c: EngineProcess
    other: EngineProcess
    plain: EngineProcess
    gate: Path
    random: random.Random

    def prompt(self, tokens: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(tokens)]

    def offered(self, engine: EngineProcess, *prompts: list[int], **more: object) -> dict[str, list[list[int]]]:
        """Have the prompts prefilled and their blocks offered."""
        answer = engine.generate(list(prompts), **more)
        time.sleep(VISIBLE)
        return answer

    def churn(self, engine: EngineProcess) -> None:
        """Overwrite every page of the engine."""
        for _ in range(3):
            engine.generate([self.prompt(15 * BLOCK) for _ in range(4)])

    def agrees(self, engine: EngineProcess, prompts: list[list[int]], cached: list[int], **more: object) -> None:
        """Assert what the engine reports as cached, and that 32 greedy tokens are those of the plain engine."""
        answer = engine.generate(prompts, 32, **more)
        assert answer["cached"] == cached, engine.ask("counters")
        assert answer["tokens"] == self.plain.generate(prompts, 32)["tokens"]


def whole(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


@pytest.fixture(scope="module", params=interpreters())
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    python = interpreters()[request.param]
    if request.param == INSTALLED and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        model, model2 = save_tiny_llama(folder / "one"), save_tiny_llama(folder / "two", rope_theta=20000.0)
        address, gate = str(folder / "s"), folder / "gate"

        gpus = torch.cuda.device_count()

        def start(name: str, gpu: int = 0, **more: object) -> EngineProcess:
            llm = llm_options(gpus)
            options = {"model": model, "address": address, "llm": llm, "gpu": gpus > 0, "path": [str(HERE)], **more}
            env = {"KVMARKET_TEST_GATE": str(gate)}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = str(gpu % gpus)
            return stack.enter_context(EngineProcess(folder / f"{name}.log", options, python, env))

        engines = [
            start("a"),
            start("b", 1, module="", llm={**llm_options(gpus), "disable_log_stats": False}),
            start("c", 0, module="gated_connector", connector="GatedConnector"),
            start("other", 1, model=model2),
            start("plain", 1, address=None),
        ]
        for engine in engines:
            engine.wait()
        assert request.param in (INSTALLED, engines[0].vllm)
        yield Node(*engines, gate, random.Random(7))


def test_second_engine_imports_the_whole_blocks_of_a_shared_prefix(node: Node):
    for _ in range(7):
        shared = [node.prompt(node.random.randrange(1, 400)) for _ in range(3)]
        node.offered(node.a, *([*prefix, 1, *node.prompt(20)] for prefix in shared))
        prompts = [[*prefix, 2, *node.prompt(30)] for prefix in shared]
        node.agrees(node.b, prompts, [whole(len(prefix)) for prefix in shared])
    counters = node.b.ask("counters")
    assert counters["vllm_tokens_imported"] == counters["vllm_tokens_asked"] > 0


def test_metrics_page_agrees_with_the_counters(node: Node):
    counters, page = node.b.ask("counters"), node.b.ask("metrics")
    if node.b.vllm.startswith(("0.26.", "0.27.")):  # LLM loses there what steps without outputs tell; servers do not
        assert 0 < page["kvmarket_imported_tokens_total"] <= counters["vllm_tokens_imported"]
        return
    assert page["kvmarket_imported_tokens_total"] == counters["vllm_tokens_imported"] > 0
    assert page["kvmarket_matched_tokens_total"] == counters["vllm_tokens_asked"]
    assert page["kvmarket_fetched_bytes_total"] == counters["bytes_fetched"] > 0
    assert page["kvmarket_fetched_blocks_total"] * BLOCK == page["kvmarket_imported_tokens_total"]
    assert page["kvmarket_offered_blocks_total"] == counters["blocks_offered"] > 0
    assert page["kvmarket_fetch_seconds_count"] > 0 and page["kvmarket_fetch_seconds_sum"] > 0
    from_peers = page.get("vllm:prompt_tokens_cached_by_source_total")  # vLLM's own, from 0.32 on
    assert from_peers in (None, counters["vllm_tokens_asked"])


def test_chunked_prefill_is_offered_and_one_token_is_left_to_compute(node: Node):
    prompt = node.prompt(24 * BLOCK)
    node.offered(node.a, prompt)
    node.agrees(node.b, [prompt], [23 * BLOCK])


def test_blocks_filled_by_decoding_are_offered(node: Node):
    prompt = node.prompt(50)
    (output,) = node.offered(node.a, prompt, tokens=64)["tokens"]
    node.agrees(node.b, [[*prompt, *output, 3]], [whole(len(prompt) + 63)])


def test_third_engine_imports_from_the_second(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.offered(node.b, prompt)
    node.churn(node.a)
    node.agrees(node.c, [[*prompt, 5]], [whole(300)])


def test_churned_pages_are_a_miss(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.churn(node.a)
    node.agrees(node.b, [prompt], [0])


def test_reset_of_the_prefix_cache_takes_all_offers_down(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    assert node.a.ask("reset")["reset"]
    node.agrees(node.b, [prompt], [0])


def test_salts_are_kept_apart(node: Node):
    prompt = node.prompt(200)
    node.offered(node.a, prompt, salt="x")
    node.agrees(node.b, [prompt], [0], salt="y")
    node.agrees(node.c, [prompt], [whole(199)], salt="x")
    node.offered(node.a, unsalted := node.prompt(200))
    node.agrees(node.b, [unsalted], [0], salt="x")


def test_one_token_changed_in_the_first_block(node: Node):
    prompt = node.prompt(200)
    node.offered(node.a, prompt)
    at = node.random.randrange(BLOCK)
    node.agrees(node.b, [[*prompt[:at], (prompt[at] + 1) % VOCAB, *prompt[at + 1 :]]], [0])


def test_other_model_never_hits(node: Node):
    prompt = node.prompt(200)
    node.offered(node.a, prompt)
    assert node.other.generate([prompt])["cached"] == [0]
    node.agrees(node.b, [prompt], [whole(199)])


def test_aborts_with_a_step_in_flight(node: Node):
    prompts = [node.prompt(24 * BLOCK) for _ in range(4)]
    for steps, prompt in enumerate(prompts, 1):
        node.a.ask("abort", prompt=prompt, tokens=40, steps=steps)
        time.sleep(VISIBLE)
        answer = node.b.generate([prompt], 32)
        assert answer["cached"][0] <= 23 * BLOCK
        assert answer["tokens"] == node.plain.generate([prompt], 32)["tokens"]


def test_first_engine_killed_while_the_second_waits_for_a_load(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.gate.touch()
    node.c.tell("generate", prompts=[prompt], tokens=32)
    waiting, end = node.gate.with_suffix(".waiting"), time.monotonic() + 60
    while not waiting.exists():
        assert time.monotonic() < end, "the load never started"
        time.sleep(0.01)
    node.a.kill()
    node.gate.unlink()
    assert node.c.answer()["tokens"] == node.plain.generate([prompt], 32)["tokens"]
    time.sleep(1.0)
    node.agrees(node.b, [prompt], [whole(299)])  # from c, which has it by now however it came
    node.agrees(node.c, [node.prompt(100)], [0])
