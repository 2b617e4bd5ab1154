"""Real vLLM engines in processes of their own: what is imported, and whether the tokens stay what they would be."""

from __future__ import annotations

import time

import pytest

from bench.engines.process import GPUS
from tests.vllm_hook.engines.model import BLOCK, VOCAB
from tests.vllm_hook.engines.node import Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_second_engine_imports_the_whole_blocks_of_a_shared_prefix(node: Node):
    for _ in range(4):
        shared = [node.prompt(node.random.randrange(1, 400)) for _ in range(3)]
        node.offered(node.a, *([*prefix, 1, *node.prompt(20)] for prefix in shared))
        prompts = [[*prefix, 2, *node.prompt(30)] for prefix in shared]
        node.agrees(node.b, prompts, [whole(len(prefix)) for prefix in shared])
    counters = node.b.ask("counters")
    assert counters["vllm_tokens_imported"] == counters["vllm_tokens_asked"] > 0


def test_metrics_page_agrees_with_the_counters(node: Node):
    counters, page = node.b.ask("counters"), node.b.ask("metrics")
    assert page["kvmarket_imported_tokens_total"] == counters["vllm_tokens_imported"] > 0
    if node.b.vllm.startswith(("0.26.", "0.27.")):  # LLM loses there what steps without outputs tell; servers do not
        return
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


@pytest.mark.skipif(GPUS > 0, reason="counts the steps of an engine whose steps overlap in the same way every time")
def test_a_request_whose_load_has_landed_is_in_the_next_step_but_one(node: Node):
    steps = []
    for _ in range(8):  # a load may take longer than a step, on a busy machine
        prompt = node.prompt(100)
        node.offered(node.a, prompt)
        found = node.b.ask("beside", prompt=[*prompt, 1], others=[node.prompt(9) for _ in range(3)], tokens=24)
        assert found["tokens"] == node.plain.generate([[*prompt, 1]], 24)["tokens"][0]
        steps.append(found["steps"])
    assert min(steps) <= 3, "another one passes until the step of its load is back"


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


def test_pages_that_another_connector_watches_are_retired_too(node: Node):
    prompt, repeated = node.prompt(300), node.prompt(300)
    node.offered(node.c, prompt, repeated)
    node.offered(node.c, repeated)  # a hit: the other connector takes the place of our watcher
    node.agrees(node.b, [prompt], [whole(299)])
    node.churn(node.c)
    node.agrees(node.a, [[*repeated, 1]], [0])


def test_loads_start_ahead_of_their_steps_where_no_other_connector_has_work_on_the_pages(node: Node):
    assert node.b.ask("ahead") == {"ahead": True}
    assert node.c.ask("ahead") == {"ahead": False}


def test_preempted_requests(node: Node):
    before = node.b.ask("preemptions")["preempted"]
    prompts = [node.prompt(9 * BLOCK + 20) for _ in range(6)]  # with their output they need more pages than there are
    node.offered(node.a, *prompts[:3])
    answer = node.b.generate(prompts, 3 * BLOCK)
    assert node.b.ask("preemptions")["preempted"] > before
    assert answer["tokens"] == node.plain.generate(prompts, 3 * BLOCK)["tokens"]
    continued = [[*prompt, *tokens, 4] for prompt, tokens in zip(prompts, answer["tokens"], strict=True)]
    for prompt in continued:
        node.agrees(node.c, [prompt])


def test_aborts_with_a_step_in_flight(node: Node):
    for steps in range(1, 5):
        prompt = node.prompt(24 * BLOCK)
        node.c.ask("abort", prompt=prompt, tokens=40, steps=steps)
        node.offered(node.a, [1])
        (cached,) = node.agrees(node.b, [prompt])
        assert cached <= 23 * BLOCK


def test_abort_while_a_load_waits(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.gate.touch()
    node.c.ask("abort", prompt=prompt, tokens=8, steps=4)
    assert node.waiting().exists()
    node.agrees(node.c, [node.prompt(100)], [0])
    node.gate.unlink()
    node.waiting().unlink()
    node.agrees(node.c, [[*prompt, 6]], [whole(300)])
    node.churn(node.c)
    node.agrees(node.b, [[*prompt, 7]], [whole(300)])


def test_one_token_changed_in_the_first_block(node: Node):
    prompt = node.prompt(200)
    node.offered(node.a, prompt)
    at = node.random.randrange(BLOCK)
    node.agrees(node.b, [[*prompt[:at], (prompt[at] + 1) % VOCAB, *prompt[at + 1 :]]], [0])


def test_a_prompt_that_comes_to_two_engines_at_once_is_computed_once(node: Node):
    pair, waited = (node.a, node.b), 0
    for pause in (0.002 * number for number in range(30)):
        prompt = node.prompt(24 * BLOCK)
        for engine in pair:
            engine.tell("generate", prompts=[prompt], tokens=8)
            time.sleep(pause)
        answers = [engine.answer() for engine in pair]
        expected = node.plain.generate([prompt], 8)["tokens"]
        assert [answer["tokens"] for answer in answers] == [expected, expected]
        counters = [engine.ask("counters") for engine in pair]
        waited = sum(each.get("vllm_requests_waited", 0) for each in counters)
        if waited and 23 * BLOCK in [answer["cached"][0] for answer in answers]:
            break
    assert waited, "each computed all prompts"
