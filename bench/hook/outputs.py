"""Whether imports leave outputs the same: greedy answers of two engines with the hook, and of one without it.

    python -m bench.hook.outputs --write h200x2               two GPUs; for each mode three engines, a minute and a half
    python -m bench.hook.outputs --modes bf16 --kill-service  and the market's service killed once, halfway
    python -m bench.hook.outputs --cpu --conversations 8      a tiny model

A conversation has `--turns`. The first prompt is random; each further one is the last prompt, its answer, and more
random tokens. The turns alternate between the two engines with the hook, so each imports the conversation so far from
the other. `--together` conversations run at a time. The engine without a connector gets the same batches of prompts
twice: with the conversation so far in its own prefix cache, and with an empty cache. Where these two answers differ
the model itself is not deterministic: a prefill after a cached prefix has other shapes than that of a whole prompt.
`same` counts answers with imports that equal one of the two; `spread` counts prompts for which the two differ.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import LLAMA_8B, MLA, Engines, await_up
from bench.registry.recover import service_of
from kvmarket.registry.protocol.address import Address

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
MODES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "full graphs": {"llm": {"compilation_config": {"cudagraph_mode": "FULL"}}},
    "fp8 KV": {"llm": {"kv_cache_dtype": "fp8"}},
    "ngram": {"llm": {"speculative_config": NGRAM}},
    "TP=2": {"gpus": 2},
    "PP=2": {"gpus": 2, "llm": {"tensor_parallel_size": 1, "pipeline_parallel_size": 2}},
    "MLA": {"shape": MLA},
}
CPU_MODES = ("bf16",)  # which is float32 there
Tokens = list[list[int]]


def tally(imported: Tokens, cold: Tokens, cached: Tokens) -> dict[str, int]:
    """Compare answers to the same prompts: with imports; and without the hook, from a cold cache and a warm one."""
    return {
        "answers": len(imported),
        "same": sum(one in (a, b) for one, a, b in zip(imported, cold, cached, strict=True)),
        "same_as_cold": sum(one == other for one, other in zip(imported, cold, strict=True)),
        "same_as_cached": sum(one == other for one, other in zip(imported, cached, strict=True)),
        "spread": sum(one != other for one, other in zip(cold, cached, strict=True)),
    }


class Conversations:
    """All conversations of one mode."""

    def __init__(self, options: argparse.Namespace, vocabulary: tuple[int, int]) -> None:
        self.options = options
        self._chance, self._vocabulary = random.Random(1), vocabulary
        self._said = [self._random(*options.prompt) for _ in range(options.conversations)]
        self.answers: dict[str, Tokens] = {"imported": [], "cold": [], "cached": []}

    def _random(self, least: int, most: int) -> list[int]:
        return [self._chance.randrange(*self._vocabulary) for _ in range(self._chance.randint(least, most))]

    def run(self, hooks: list[EngineProcess], plain: EngineProcess, halfway: Callable[[], object]) -> None:
        """Run all turns of all conversations, `--together` at a time; call `halfway` once, before the middle group."""
        groups = range(0, len(self._said), self.options.together)
        for first in groups:
            if first == groups[len(groups) // 2]:
                halfway()
            prompts = self._said[first : first + self.options.together]
            for turn in range(self.options.turns):
                prompts = self._turn(prompts, hooks[turn % 2], plain)

    def _turn(self, prompts: Tokens, hook: EngineProcess, plain: EngineProcess) -> Tokens:
        """Run one turn of these conversations; returns the prompts of the next turn."""
        for engine in (hook, plain):
            engine.tell("generate", prompts=prompts, tokens=self.options.answer)
        imported, cached = (engine.answer(load.SECONDS) for engine in (hook, plain))
        plain.ask("reset")
        cold = plain.generate(prompts, self.options.answer)
        for kind, answer in (("imported", imported), ("cold", cold), ("cached", cached)):
            self.answers[kind] += answer["tokens"]
        return [
            [*prompt, *answer, *self._random(*self.options.more)]
            for prompt, answer in zip(prompts, imported["tokens"], strict=True)
        ]


def imported(engines: list[EngineProcess]) -> tuple[int, list[str]]:
    """How many tokens these engines have imported so far, and the reasons of hooks that are off."""
    counters = [engine.ask("counters") for engine in engines]
    off = sorted({name for each in counters for name in each if name.startswith("vllm_hook_off")})
    return sum(each.get("vllm_tokens_imported", 0) for each in counters), off


def measure(folder: Path, mode: str, options: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    """Measure one mode on three engines of its own; returns its row."""
    more: dict[str, Any] = {"seqs": max(8, options.together), "longest": options.longest, **MODES[mode]}
    engines = Engines(folder, options.gpus, more.pop("shape", LLAMA_8B))
    more["share"] = 0.31 if "gpus" in more or len(set(engines.gpus)) == 1 else 0.45
    if options.batch_invariant:
        more["env"] = {"VLLM_BATCH_INVARIANT": "1"}
    if not engines.gpus:
        more["llm"] = {"num_gpu_blocks_override": options.together * options.longest // 8, **more.get("llm", {})}
    hooks = [engines.start(f"hook-{at}", at, address=engines.address, **more) for at in (0, 1)]
    plain = engines.start("plain", 0, **more)
    await_up(stack, (*hooks, plain))
    talks, before = Conversations(options, (1000, 120_000)), 0

    def halfway() -> None:
        nonlocal before
        before = imported(hooks)[0]
        if options.kill_service:
            os.kill(service_of(Address(engines.address)), signal.SIGKILL)

    talks.run(hooks, plain, halfway)
    tokens, off = imported(hooks)
    found: dict[str, Any] = tally(**talks.answers)
    share = found["same"] / found["answers"]
    found |= {"mode": mode, "tokens_imported": tokens, "tokens_imported_after_halfway": tokens - before, "off": off}
    if options.kill_service:
        found["service"] = "killed halfway"
    return load.row(f"same answers, {mode}", [share], "share", 1.0, **found)


def main() -> None:
    """Measure, print, and write if asked.

    Exits with 1 if imports changed more answers than `spread`, or if nothing was imported after halfway: then the row
    says nothing about imports, and `off` has the reasons if the hook was off.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-outputs.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--modes", nargs="+", choices=MODES, help=f"all; CPU: {', '.join(CPU_MODES)}")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--together", type=int, default=8, help="conversations that run at a time")
    parser.add_argument("--answer", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--prompt", type=int, nargs=2, help="least and most tokens of a first turn (100 1,500)")
    parser.add_argument("--more", type=int, nargs=2, help="the same of each further turn (50 400)")
    parser.add_argument("--kill-service", action="store_true", help="SIGKILL it once, halfway through each mode")
    parser.add_argument("--batch-invariant", action="store_true", help="vLLM's kernels that do not depend on the batch")
    options = parser.parse_args()
    options.prompt = options.prompt or ([40, 200] if options.cpu else [100, 1500])
    options.more = options.more or ([20, 60] if options.cpu else [50, 400])
    options.longest = options.prompt[1] + options.turns * (options.answer + options.more[1]) + 32
    rows: list[dict[str, Any]] = []
    options.gpus = [] if options.cpu else options.gpus
    settings = {name: value for name, value in vars(options).items() if name != "write"}
    for mode in options.modes or (CPU_MODES if options.cpu else MODES):
        with tempfile.TemporaryDirectory(prefix="outputs-", dir="/tmp") as folder, ExitStack() as stack:
            rows.append(load.show(measure(Path(folder), mode, options, stack)))
        if options.write:
            packages, facts = ("torch", "triton", "vllm", "kvmarket"), report.facts(options.gpus)
            print(report.write(options.write, "outputs", rows, packages, settings=settings, **facts))
    raise SystemExit(
        any(not row["tokens_imported_after_halfway"] or row["answers"] - row["same"] > row["spread"] for row in rows)
    )


if __name__ == "__main__":
    main()
