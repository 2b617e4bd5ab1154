"""Real vLLM engines: the service and one of them are killed under load; who survives is right and leaks nothing.

These tests end what the other tests of the folder use, so their file is the last.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bench.engines.process import GPUS
from tests.chaos.leaks import SLACK, Held
from tests.vllm_hook.engines.node import VISIBLE, Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def round_of(node: Node, shared: list[list[int]]) -> int:
    """Some of all that happens, on engines chosen at random; returns how many tokens were imported or at hand."""
    engines = [node.a, node.b, node.c]
    first, second = node.random.sample(engines, 2)
    prefix = node.random.choice(shared)
    salt = node.random.choice([None, None, "x", "y"])
    adapter = node.random.choice([node.adapter, None, None, None, None])
    prompts = [[*prefix, *node.prompt(node.random.randrange(1, 200))] for _ in range(3)]
    found = sum(node.agrees(first, prompts, salt=salt, adapter=adapter))
    second.ask("abort", prompt=prompts[0], tokens=9, steps=node.random.randrange(1, 4))
    if node.random.random() < 0.2:
        second.ask("reset")
    if node.random.random() < 0.3:
        node.churn(second)
    return found + sum(node.agrees(second, [[*prompt, 1] for prompt in prompts], salt=salt, adapter=adapter))


def test_churn_with_the_service_killed_in_the_middle(node: Node):
    shared = [node.prompt(250) for _ in range(3)]
    assert sum(round_of(node, shared) for _ in range(6)) > 0
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    os.kill(node.service(), signal.SIGKILL)
    node.agrees(node.c, [[*prompt, 1]])
    time.sleep(2.0)
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.offered(node.b, later := node.prompt(300))
    node.agrees(node.a, [[*later, 1]], [whole(300)])
    assert sum(round_of(node, shared) for _ in range(6)) > 0


def test_memory_of_engines_is_flat(node: Node):
    def imports() -> Held:
        for _ in range(8):
            prompts = [node.prompt(300) for _ in range(3)]
            node.offered(node.a, *prompts)
            node.b.generate(prompts, 2)
        held = Held.by(node.b.pid)
        assert held is not None
        return held

    before, after = imports(), imports()
    grown = {name: late - early for name, early, late in zip(Held._fields, before, after, strict=True)}
    assert all(grown[name] <= slack for name, slack in zip(Held._fields, SLACK, strict=True)), grown


def test_first_engine_killed_while_another_waits_for_a_load(node: Node):
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.agrees(node.b, [[*prompt[:100], 1]], [whole(100)])
    assert GPUS or maps(node.b.pid, node.a.pid), "the test looks for the wrong names"  # a GPU's mappings have none
    node.gate.touch()
    node.c.tell("generate", prompts=[prompt], tokens=32)
    end = time.monotonic() + 60
    while not node.waiting().exists():
        assert time.monotonic() < end, "the load never started"
        time.sleep(0.01)
    killed = node.a.pid
    node.a.kill()
    node.gate.unlink()
    assert node.c.answer()["tokens"] == node.plain.generate([prompt], 32)["tokens"]
    time.sleep(1.0)
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])  # from c, which has it by now however it came
    for survivor in (node.b, node.c):
        end = time.monotonic() + 5
        while maps(survivor.pid, killed) and time.monotonic() < end:
            node.agrees(survivor, [node.prompt(100)], [0])  # its worker hears of the dead with the next step
        assert maps(survivor.pid, killed) == [], "memory of a dead peer is still mapped"


def test_killed_engine_starts_again_with_the_same_settings(node: Node):
    node.start("a").wait()
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])
    node.agrees(node.a, [[*prompt, 2]], [whole(300)])


@pytest.mark.skipif(GPUS > 0, reason="on GPUs all weights can be seen")
def test_engine_whose_new_weights_are_hidden_stays_off(node: Node):
    for engine in (node.b, node.plain):
        engine.ask("reload", path=node.other_model)
        assert engine.ask("reset")["reset"]
    time.sleep(VISIBLE)
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    node.agrees(node.b, [[*prompt, 1]], [0])
    assert node.c.generate([[*prompt, 1]])["cached"] == [whole(300)]
    node.agrees(node.b, [[*prompt, 1]], [whole(300)])  # its own
    assert any(name.startswith("vllm_hook_off{weights changed") for name in node.b.ask("counters"))


def maps(pid: int, owner: int) -> list[str]:
    """What of `owner` process `pid` has mapped."""
    lines = (Path("/proc") / str(pid) / "maps").read_text().splitlines()
    return [line for line in lines if "/dev/shm/" in line and f"_{owner}_" in line]
