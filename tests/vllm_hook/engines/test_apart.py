"""Real vLLM engines: what is kept apart, and what is invalid after a reset, a sleep, an update of the weights."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bench.engines.process import GPUS, EngineProcess
from tests.vllm_hook.engines.node import Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_vllms_hash_seed_does_not_matter(node: Node):
    """Every engine has another PYTHONHASHSEED, and the market compares tokens."""
    prompt = node.prompt(200)
    node.offered(node.a, prompt)
    node.agrees(node.b, [prompt], [whole(199)])
    node.agrees(node.c, [prompt], [whole(199)])


def test_salts_are_kept_apart(node: Node):
    prompt = node.prompt(200)
    node.offered(node.a, prompt, salt="x")
    node.agrees(node.b, [prompt], [0], salt="y")
    node.agrees(node.c, [prompt], [whole(199)], salt="x")
    node.offered(node.a, unsalted := node.prompt(200))
    node.agrees(node.b, [unsalted], [0], salt="x")


def test_requests_with_an_adapter_pass_by(node: Node):
    if not node.adapters:
        pytest.skip("these engines take no adapters")
    adapted, plain = node.prompt(200), node.prompt(200)
    node.offered(node.a, adapted, adapter=node.adapter)
    node.offered(node.a, plain)
    node.agrees(node.c, [adapted], [0], adapter=node.adapter)
    node.agrees(node.c, [plain], [0], adapter=node.adapter)
    node.agrees(node.b, [adapted], [0])
    node.agrees(node.b, [plain], [whole(199)])
    assert node.c.ask("counters")["vllm_import_refused{LoRA}"] > 0
    with_it, without = (node.plain.generate([plain], 32, adapter=name)["tokens"] for name in (node.adapter, None))
    assert with_it != without, "the adapter does nothing"


def test_reset_of_the_prefix_cache_takes_all_offers_down(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    assert node.a.ask("reset")["reset"]
    node.agrees(node.b, [prompt], [0])


@pytest.mark.skipif(GPUS > 0, reason="engines that can sleep on GPUs have memory that nobody else can map")
def test_sleep_takes_all_offers_down_and_the_engine_comes_back(node: Node):
    for level in (1, 2):
        prompt = node.prompt(300)
        node.offered(node.a, prompt)
        node.a.ask("nap", level=level)
        node.agrees(node.b, [prompt], [0])
        node.offered(node.a, again := node.prompt(300))
        node.agrees(node.b, [again], [whole(299)])


@pytest.fixture
def updated(node: Node) -> Iterator[Node]:
    """The node; whatever the test did, `a`, `c` and `plain` have their first weights afterwards."""
    yield node
    for engine in (node.a, node.c, node.plain):
        update(node, engine, node.model)


def update(node: Node, engine: EngineProcess, weights: str) -> None:
    """Load these weights, empty the cache, and let steps show which they are until the engine is back in the market."""
    engine.ask("reload", path=weights)
    assert engine.ask("reset")["reset"]
    node.offered(engine, node.prompt(40))
    end = time.monotonic() + 30
    while times(engine, "vllm_left_market") != times(engine, "vllm_joined_again"):
        assert time.monotonic() < end, engine.ask("counters")
        node.offered(engine, node.prompt(40))


def times(engine: EngineProcess, name: str) -> int:
    """What the engine's counters of this name amount to, whatever the reason."""
    return sum(count for key, count in engine.ask("counters").items() if key.split("{")[0] == name)


def test_update_of_the_weights(updated: Node):
    node = updated
    old, mixed = node.prompt(300), node.prompt(300)
    node.offered(node.a, old)
    (before,) = node.plain.generate([[*mixed, 1]], 32)["tokens"]
    for engine in (node.c, node.plain):
        engine.ask("reload", path=node.other_model)
    assert node.plain.ask("reset")["reset"]
    node.agrees(node.c, [[*old, 1]], [0])  # a has it, of the old weights
    node.offered(node.c, mixed)
    answer = node.a.generate([[*mixed, 1]], 32)
    assert answer["cached"] == [0] and answer["tokens"] == [before]
    for engine in (node.a, node.c):
        update(node, engine, node.other_model)
    for here, there in ((node.a, node.c), (node.c, node.a)):
        prompt = node.prompt(300)
        node.offered(here, prompt)
        node.agrees(there, [[*prompt, 1]], [whole(300)])
        assert node.b.generate([[*prompt, 1]])["cached"] == [0], "b has the old weights"


def test_weights_that_are_loaded_into_the_model_itself(updated: Node):
    node = updated
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    for engine in (node.c, node.plain):
        engine.ask("load", value=0.5)
    assert node.plain.ask("reset")["reset"]
    node.agrees(node.c, [[*prompt, 1]], [0])
    assert node.c.generate([[*prompt, 1]], 32)["tokens"] != node.a.generate([[*prompt, 1]], 32)["tokens"]


def test_engines_share_again_with_their_first_weights(node: Node):
    time.sleep(1.0)
    for engine in (node.a, node.c):
        prompt = node.prompt(300)
        node.offered(engine, prompt)
        node.agrees(node.b, [[*prompt, 1]], [whole(300)])
