"""What a request gains when it waits for a prompt that a peer is computing: basis of the default ``wait_tokens``.

    python -m bench.hook.waits --write h200x2       two GPUs, some two minutes
    python -m bench.hook.waits --cpu                a tiny model: shows that it runs, its times mean nothing

Two engines get the same fresh prompts in nearly the same order, with short answers; each of `--windows` is a number of
requests that run at a time on each engine. "waits": a request waits if a peer has begun its prompt. "does not": the
request's engine computes the prompt too. Both pairs of engines are up at the same time, share each GPU's memory and
take turns; every run begins with empty caches. A row has the times to the first token, and the rates of both engines
together.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import Engines, await_up
from bench.hook.serving import run, summary

MODES = {"waits": 1, "does not": 0}  # wait_tokens: from one block on; never
ANSWER = 4
APART = 3.0  # prompts: how far a prompt's places in the two orders may differ


def start(engines: Engines, longest: int, stack: ExitStack) -> dict[str, list[EngineProcess]]:
    """Start two engines of each mode; each mode has a market of its own."""
    more: dict[str, Any] = {"share": 0.45, "longest": longest + ANSWER + 64}
    if not engines.gpus:
        more["llm"] = {"num_gpu_blocks_override": 8 * longest // engines.block_size}
    made = {}
    for mode, tokens in MODES.items():
        market = {"address": f"{engines.address}-{tokens}", "extra": {"wait_tokens": tokens}}
        made[mode] = [engines.start(f"waits-{tokens}-{at}", at, **market, **more) for at in range(2)]
    await_up(stack, chain.from_iterable(made.values()))
    return made


def prompts(tokens: int, count: int) -> list[load.Requests]:
    """The same requests for both engines, all at time 0; each engine's order is shuffled among near neighbours."""
    chance, made = random.Random(count), [[load.fresh(), tokens] for _ in range(count)]
    orders = [sorted(range(count), key=lambda at: at + APART * chance.random()) for _ in range(2)]
    return [[{"at": 0.0, "parts": [made[at]], "tokens": ANSWER} for at in order] for order in orders]


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-waits.json")
    parser.add_argument("--gpus", type=int, nargs=2, default=[0, 1], help="one engine of each mode on each; may be one")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+", help="256 to 8,192; CPU: 128 and 512")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4], help="requests at a time on each engine")
    parser.add_argument("--tokens", type=int, help="of all prompts of a run, and ten prompts at least: 65,536; CPU: 0")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind")
    options = parser.parse_args()
    lengths = options.lengths or ([128, 512] if options.cpu else [256, 512, 1024, 2048, 4096, 8192])
    tokens = (0 if options.cpu else 65_536) if options.tokens is None else options.tokens
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="waits-", dir="/tmp") as folder, ExitStack() as stack:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        groups = start(engines, max(lengths), stack)
        for group in groups.values():
            run(group, prompts(max(lengths), 4), 4)
        for length in lengths:
            for window in options.windows:
                found: dict[str, list[tuple[list[load.Requests], list[load.Requests]]]] = {mode: [] for mode in MODES}
                for repeat in range(options.repeats):
                    for mode in list(MODES)[:: 1 if repeat % 2 else -1]:
                        plans = prompts(length, max(10, tokens // length))
                        found[mode].append((plans, run(groups[mode], plans, window)))
                for mode, runs in found.items():
                    more = {"mode": mode, "tokens": length, "window": window}
                    each = [summary("", *one) for one in runs]
                    plans, done = ([part for one in runs for part in one[side]] for side in (0, 1))
                    row = summary(f"{length} tokens, {window} at a time, {mode}", plans, done, **more)
                    for rate in ("requests_per_s", "tokens_per_s"):
                        row[rate] = sorted(one[rate] for one in each)[len(each) // 2]
                    rows.append(load.show(row))
                if options.write:
                    facts: dict[str, Any] = dict(report.facts(engines.gpus))
                    packages = ("torch", "triton", "vllm", "kvmarket")
                    report.write(options.write, "waits", rows, packages, repeats=options.repeats, **facts)
        for mode, group in groups.items():
            print("counters,", mode, group[1].ask("counters"))


if __name__ == "__main__":
    main()
