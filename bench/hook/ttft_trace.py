"""Where each millisecond of the time to the first token goes, if a peer holds the prefix and if the engine does.

    python -m bench.hook.ttft_trace --write h200x2      two GPUs, some two minutes
    python -m bench.hook.ttft_trace --cpu               a tiny model: the scheduler's share is real, the model's is not

Calls of vLLM and of the hook are timed inside the engine (bench/engines/spans.py); a span excludes its inner spans. A
request whose prefix a peer holds has three phases: until its load is launched, until the engine sees the load's end,
and after that. All times are medians. `extra` is, span by span, the time with the peer's prefix minus the time with the
engine's own; "load under way" cannot be shorter than the copy of the load's bytes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import Engines, await_up
from bench.engines.spans import PHASES

PEER, OWN = "peer's pool", "own prefix cache"
VISIBLE = 0.3  # seconds after which an offer has surely reached the other engine
Samples = dict[str, dict[tuple[str, str], list[float]]]


def measure(owner: EngineProcess, reader: EngineProcess, tokens: int, repeats: int) -> tuple[Samples, dict[str, Any]]:
    """Milliseconds by column, phase and span; and by column the whole time to the first token, as the caller sees."""
    samples: Samples = {PEER: defaultdict(list), OWN: defaultdict(list)}
    whole: dict[str, list[float]] = {PEER: [], OWN: []}
    for repeat in range(-2, repeats):  # the first two warm up
        parts = [[load.fresh(), tokens]]
        owner.ask("ask", load.SECONDS, parts=parts)
        for column in (PEER, OWN):
            time.sleep(VISIBLE)  # also before the own hit: an engine that has idled answers later
            answer = reader.ask("ask", parts=parts, trace=True)
            if not answer["cached"] and repeat >= 0:
                raise SystemExit(f"{tokens} tokens, {column}: nothing was cached; is the hook on? {reader.tail(5)}")
            if repeat >= 0:
                whole[column].append(answer["ms"])
                for phase, spans in answer["spans"].items():
                    for span, found in spans.items():
                        samples[column][phase, span].append(found["ms"])
    return samples, whole


def medians(samples: Samples, repeats: int) -> dict[str, dict[tuple[str, str], float]]:
    """The median of every span; a request without the span counts as 0 ms."""
    return {
        column: {key: statistics.median(times + [0.0] * (repeats - len(times))) for key, times in spans.items()}
        for column, spans in samples.items()
    }


def lines(found: dict[str, dict[tuple[str, str], float]]) -> list[str]:
    """The lines of a table of spans, the largest `extra` first, with the sums of the phases at the end."""
    own: dict[str, float] = defaultdict(float)
    for (_, span), ms in found[OWN].items():
        own[span] += ms
    spans = {span: [found[PEER].get((phase, span), 0.0) for phase in PHASES] for _, span in (*found[PEER], *found[OWN])}
    rows = [(span, *values, own[span], sum(values) - own[span]) for span, values in spans.items()]
    rows.sort(key=lambda row: -row[-1])
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 6))))
    head = ("ms", *PHASES, "own cache", "extra")
    return [
        f"{name:<46}" + "".join(f"{value:>19}" if isinstance(value, str) else f"{value:>19.3f}" for value in values)
        for name, *values in (head, *rows)
    ]


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-ttft-trace.json")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--gpus", type=int, nargs=2, default=[0, 1], help="of the owner and of the reader; may be one")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+", help="of the prompts (1,024, 10,000 and 33,000; CPU: 4,000)")
    options = parser.parse_args()
    lengths = options.lengths or ([4000] if options.cpu else [1024, 10_000, 33_000])
    rows = []
    with tempfile.TemporaryDirectory(prefix="trace-", dir="/tmp") as folder:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        more = {"share": 0.6 if len(set(options.gpus)) > 1 else 0.4, "longest": max(lengths) + 64}
        if options.cpu:
            more["llm"] = {"num_gpu_blocks_override": 3 * max(lengths) // engines.block_size}
        owner, reader = (engines.start(f"trace-{at}", at, address=engines.address, **more) for at in (0, 1))
        with ExitStack() as stack:
            await_up(stack, (owner, reader))
            for tokens in lengths:
                samples, whole = measure(owner, reader, tokens, options.repeats)
                print(f"\n{tokens} tokens, {tokens * engines.token_bytes / 1e6:.0f} MB, {options.repeats} times")
                print("\n".join(lines(medians(samples, options.repeats))))
                for column, spans in samples.items():
                    name = f"{column}, {tokens} tokens"
                    rows.append(load.row(f"{name}, all", whole[column], "ms", column=column, tokens=tokens))
                    for (phase, span), times in spans.items():
                        key = {"column": column, "tokens": tokens, "phase": phase, "span": span}
                        rows.append(load.row(f"{name}, {phase}: {span}", times, "ms", **key))
                    print(f"{name}: {statistics.median(whole[column]):.3f} ms in all")
                if options.write:
                    packages, facts = ("torch", "triton", "vllm", "kvmarket"), report.facts(engines.gpus)
                    print(report.write(options.write, "ttft-trace", rows, packages, repeats=options.repeats, **facts))


if __name__ == "__main__":
    main()
