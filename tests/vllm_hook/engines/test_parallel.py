"""Engines of two ranks: tensor parallel beside tensor parallel, pipeline parallel beside pipeline parallel."""

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

from bench.engines.process import GPUS, EngineProcess
from tests.model_engine import until
from tests.vllm_hook.engines.model import BLOCK, VOCAB, llm_options, save_tiny_llama
from tests.vllm_hook.engines.node import CONNECTORS, VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(GPUS == 1, reason="two ranks need two GPUs, this machine has one"),
]


@dataclass
class Node:
    """Engines of one node: `plain` without a connector, `one` of one rank; `start` adds to them."""

    folder: Path
    model: str
    stack: ExitStack
    random: random.Random

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def start(self, name: str, connector: str | None, **llm: object) -> EngineProcess:
        modules = {"KVMarketConnector": "vllm_hook.connector", "LameConnector": "lame_connector"}
        options = {
            "model": self.model,
            "path": [str(CONNECTORS)],
            "llm": {**llm_options(), **llm},
            "address": str(self.folder / "s") if connector else None,
            "connector": connector,
            "module": modules.get(connector or "", ""),
        }
        env = {"KVMARKET_TEST_GATE": str(self.gate)}
        return self.stack.enter_context(EngineProcess(self.folder / f"{name}.log", options, env=env))

    def prompt(self, tokens: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(tokens)]


@dataclass
class Pair:
    """Two engines of two ranks each, of one market; rank 1 of `b` loads nothing while the node's gate exists."""

    a: EngineProcess
    b: EngineProcess
    plain: EngineProcess
    one: EngineProcess
    node: Node

    def offered(self, *prompts: list[int], tokens: int = 1) -> list[list[int]]:
        """Have `a` prefill the prompts until `b` has heard of all their blocks; returns the tokens that follow.

        Idle workers of an engine with several ranks spin for a while: news may take seconds on two cores.
        """
        outputs = self.a.generate(list(prompts), tokens)["tokens"]
        for prompt, output in zip(prompts, outputs, strict=True):
            known = [*prompt, *output[:-1]]  # the KV of the last token is not computed
            blocks = len(known) // BLOCK
            until(lambda known=known, blocks=blocks: self.b.ask("found", prompt=known)["blocks"] >= blocks, seconds=60)
        return outputs

    def fetched(self) -> list[int]:
        """How many blocks each rank of `b` has fetched so far."""
        return [rank.get("blocks_fetched", 0) for rank in self.b.ask("ranks")["ranks"]]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        yield Node(folder, save_tiny_llama(folder / "model"), stack, random.Random(11))


@pytest.fixture(scope="module")
def alone(node: Node) -> tuple[EngineProcess, EngineProcess]:
    return node.start("plain", None), node.start("one", "KVMarketConnector")


@pytest.fixture(scope="module", params=["tensor_parallel_size", "pipeline_parallel_size"])
def pair(request: pytest.FixtureRequest, node: Node, alone: tuple[EngineProcess, EngineProcess]) -> Iterator[Pair]:
    parallel = {request.param: 2}
    a = node.start(f"{request.param}-a", "KVMarketConnector", **parallel)
    with a, node.start(f"{request.param}-b", "LameConnector", **parallel) as b:
        for engine in (a, b, *alone):
            if not engine.vllm:
                engine.wait()
        yield Pair(a, b, *alone, node)


def test_prefixes_and_decoded_blocks_are_imported_by_every_rank(pair: Pair):
    before = pair.fetched()
    blocks = 0
    for _ in range(3):
        prompts = [pair.node.prompt(pair.node.random.randrange(40, 300)) for _ in range(3)]
        outputs = pair.offered(*prompts, tokens=40)
        turns = [[*prompt, *output, 3] for prompt, output in zip(prompts, outputs, strict=True)]
        whole = [(len(turn) - 2) // BLOCK for turn in turns]
        answer = pair.b.generate(turns, 32)
        assert answer["cached"] == [count * BLOCK for count in whole], (pair.a.ask("counters"), pair.b.ask("counters"))
        assert answer["tokens"] == pair.plain.generate(turns, 32)["tokens"]
        blocks += sum(whole)
    assert [now - then for now, then in zip(pair.fetched(), before, strict=True)] == [blocks, blocks]


def test_one_rank_that_cannot_load(pair: Pair):
    prompt = pair.node.prompt(300)
    pair.offered(prompt)
    imported, fetched = pair.b.ask("counters").get("vllm_tokens_imported", 0), pair.fetched()
    pair.node.gate.touch()
    answer = pair.b.generate([prompt], 32)
    pair.node.gate.unlink()
    assert answer["tokens"] == pair.plain.generate([prompt], 32)["tokens"]
    assert pair.b.ask("counters").get("vllm_tokens_imported", 0) == imported, "a block that rank 1 has not counts"
    assert pair.fetched() == [fetched[0] + 299 // BLOCK, fetched[1]]


def test_an_engine_of_one_rank_never_matches(pair: Pair):
    prompts = [pair.node.prompt(200) for _ in range(2)]
    pair.offered(prompts[0])
    pair.one.generate([prompts[1]])
    time.sleep(VISIBLE)
    assert pair.one.generate([prompts[0]])["cached"] == [0]
    assert pair.b.generate([prompts[1]])["cached"] == [0]
    assert pair.b.generate([prompts[0]])["cached"] == [199 // BLOCK * BLOCK]
