"""Time to the first token, by where the KV of the prompt's prefix is: nowhere, own cache, a peer's pool, host memory.

    python -m bench.hook.ttft --write h200x2    two GPUs, five engines with dummy weights at once, some four minutes
    python -m bench.hook.ttft --cpu             a tiny model: shows that it runs, its times mean nothing

Requests run one at a time, and each is timed until its answer's first token; Llama-3.1-8B shape, bf16, CUDA graphs.
`--prompts` is the number of fresh random prompts per length. Each is prefilled once, and then asked for `--again` times
from every other place. Before a read from a peer or from host memory, that engine's own cache is emptied.
On the first GPU run the owner, the engine without a connector, and the one with LMCache, if that is installed; on the
second the reader, and the engine with vLLM's OffloadingConnector. Only one engine works at a time. On rented machines
cores differ by half, as other tenants use them. So before each request its engine's scheduling thread moves to cores
that are fast then; if too few are, the request waits (`waited_s`; PATIENCE in all at most). Other threads are not
moved. By default vLLM launches the rest of a prompt after a hit as several graphs; with `--graphs FULL` as one, so that
the times depend less on the cores. LMCache always keeps the default: before a step of one graph vLLM 0.26 gives a
connector no attention metadata, and then LMCache 0.5.2 loads nothing.

`bytes`: KV of the prompt, 131,072 a token. The ceiling is a lower bound of the time: that of the own cache, plus, for a
peer, the bytes at the rate of a contiguous peer copy, measured in the same run. `ratio` is ceiling over median. `goal`
is what the hook should reach: the own cache's time, plus 1.15 times the copy's, plus 2 ms. `extra`: the median, over
rounds, of the time from the peer's pool minus the time from the own cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import Engines, await_up
from bench.hook.cores import Cores

HOST_GIB = 24  # pinned memory of each engine with a host cache: room for one prompt at a time
LMCACHE = {"LMCACHE_LOCAL_CPU": "True", "LMCACHE_MAX_LOCAL_CPU_SIZE": str(HOST_GIB), "LMCACHE_CHUNK_SIZE": "256"}
PATIENCE = 60  # seconds
GRAPHS = "FULL_AND_PIECEWISE"  # vLLM's default
OWN, PEER = "own prefix cache", "peer's pool"
HOSTS = {"offload": "host memory (OffloadingConnector)", "lmcache": "host memory (LMCache)"}
GOAL_BYTES, GOAL_MS = 1.15, 2.0
Samples = dict[tuple[str, int], list[float]]


def copy_rate(source: int, destination: int, repeats: int = 20) -> float:
    """Median GB/s of a contiguous copy of 1 GiB by the copy engine from one GPU to the other: the ceiling."""
    there, here = (torch.empty(1 << 30, dtype=torch.uint8, device=f"cuda:{index}") for index in (source, destination))
    rates = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize(destination)
        start = time.perf_counter()
        here.copy_(there)
        torch.cuda.synchronize(destination)
        rates.append(here.numel() / (time.perf_counter() - start) / 1e9)
    del there, here
    torch.cuda.empty_cache()  # engines need the memory
    return sorted(rates[3:])[repeats // 2]


class Bench:
    """The engines by name, the `samples` measured on them, and in `wrong` what must not happen."""

    def __init__(
        self, engines: dict[str, EngineProcess], block_size: int, prompts: int, again: int, patience: float = 0
    ) -> None:
        self.engines, self.block_size, self.prompts, self.again = engines, block_size, prompts, again
        self.samples: Samples = defaultdict(list)
        self.wrong: list[str] = []
        self.cores = Cores(patience)

    def ask(self, engine: str, parts: list[list[int]], column: str = "", cached: int | None = None) -> int:
        """Time the first token of an answer and return it. vLLM must report `cached` cached tokens, if given."""
        answer = self.engines[engine].ask("ask", load.SECONDS, parts=parts)
        tokens = parts[0][1]
        if column and cached is not None and answer["cached"] != cached:
            self.wrong.append(f"{column} {tokens}: {answer['cached']} cached tokens instead of {cached}")
        if column:
            self.samples[column, tokens].append(answer["ms"])
        return int(answer["first"])

    def measure(self, tokens: int, *, warm: bool = False) -> None:
        """Measure all columns of one length; with `warm` once, to warm up, without keeping any time."""
        whole = (tokens - 1) // self.block_size * self.block_size
        for _ in range(1 if warm else self.prompts):
            parts = [[load.fresh(), tokens]]

            def ask(engine: str, column: str, cached: int | None = None, parts: list[list[int]] = parts) -> int:
                if not warm:  # not while warming up: threads made then would inherit the affinity
                    os.sched_setaffinity(self.engines[engine].pid, self.cores.fastest())
                return self.ask(engine, parts, "" if warm else column, cached)

            firsts = {"prefill": ask("plain", "prefill", 0), "prefill, hook on": ask("owner", "prefill, hook on", 0)}
            time.sleep(0.3)
            again = 2 if warm else self.again
            for _ in range(again):
                firsts[OWN] = ask("plain", OWN, whole)
                firsts[PEER] = ask("reader", PEER, whole)
                ask("plain", "")  # an engine that has idled answers later: so all have idled as long
                firsts[f"{OWN}, hook on"] = ask("reader", f"{OWN}, hook on", whole)
                self.reset("reader")
                self.compare(tokens, firsts)
            for engine in [name for name in HOSTS if name in self.engines]:
                firsts[f"prefill, {engine} on"] = ask(engine, f"prefill, {engine} on")
                for _ in range(again):
                    self.ask(engine, [[load.fresh(), 64]])  # one more step, so that the stores are complete
                    time.sleep(0.1)
                    self.reset(engine)
                    firsts[HOSTS[engine]] = ask(engine, HOSTS[engine])
                    self.compare(tokens, firsts)

    def reset(self, engine: str) -> None:
        """Empty an engine's own prefix cache; if vLLM refuses, note it: the next hit would be in that cache."""
        if not self.engines[engine].ask("reset")["reset"]:
            self.wrong.append(f"{engine}: the prefix cache was not reset")

    def compare(self, tokens: int, firsts: dict[str, int]) -> None:
        """Note if the same prompt had different first tokens."""
        if len(set(firsts.values())) > 1:
            self.wrong.append(f"{tokens} tokens: first tokens differ: {firsts}")

    def rows(self, rate: float, token_bytes: int) -> list[dict[str, Any]]:
        """The rows of the result file so far; `rate` of the contiguous copy in GB/s."""
        return rows_of(self.samples, rate, token_bytes, OWN, {PEER: OWN}, (GOAL_BYTES, GOAL_MS))


def rows_of(
    samples: Samples, rate: float, token_bytes: int, own: str, beside: dict[str, str], goal: tuple[float, float]
) -> list[dict[str, Any]]:
    """Rows of a result file, from milliseconds by column and prompt length.

    `own`: the column of own hits, the ceiling of all others (plus the copy at `rate` GB/s, for PEER). `beside`: column
    -> column measured in the same round; ``extra`` is the median difference to it. `goal` of PEER: a factor of the time
    of that copy, and milliseconds beyond the own hit.
    """
    found = []
    for (column, tokens), times in samples.items():
        floor, size = report.percentiles(samples[own, tokens])["p50"], tokens * token_bytes
        copy = 1e3 * size / (rate * 1e9)
        made = load.row(f"{column}, {tokens} tokens", times, "ms", floor + (copy if column == PEER else 0))
        made |= {"column": column, "tokens": tokens, "bytes": size}
        if column == PEER:
            made["goal"] = round(floor + goal[0] * copy + goal[1], 2)
        if column in beside:
            pairs = zip(times, samples[beside[column], tokens], strict=True)
            made["extra"] = report.percentiles([one - other for one, other in pairs])["p50"]
        found.append(made)
    return found


def start(engines: Engines, stack: ExitStack, longest: int, graphs: str) -> dict[str, EngineProcess]:
    """Start all engines: without LMCache if it is not installed, and on a CPU without both host caches."""
    few = {"num_gpu_blocks_override": 3 * longest // engines.block_size}
    llm, default = ({"compilation_config": {"cudagraph_mode": mode}} for mode in (graphs, GRAPHS))
    share = 0.3 if len(set(engines.gpus)) > 1 else 0.19
    more: dict[str, Any] = {"share": share, "longest": longest + 64, "llm": llm if engines.gpus else few}
    made = {
        "owner": engines.start("owner", 0, address=engines.address, **more),
        "reader": engines.start("reader", 1, address=engines.address, **more),
        "plain": engines.start("plain", 0, **more),
    }
    if engines.gpus:
        made["offload"] = engines.start("offload", 1, **{**more, "llm": {**llm, "kv_offloading_size": HOST_GIB}})
        if importlib.util.find_spec("lmcache") is not None:
            transfer = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
            made["lmcache"] = engines.start("lmcache", 0, transfer=transfer, env=LMCACHE, **{**more, "llm": default})
    await_up(stack, made.values())
    return made


def main() -> None:
    """Measure, print, and write if asked. Exits 1 when a token or a cached count was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-ttft.json")
    parser.add_argument("--prompts", type=int, default=4, help="of each length")
    parser.add_argument("--again", type=int, default=5, help="times that each prompt is taken from every place")
    parser.add_argument("--gpus", type=int, nargs=2, default=[0, 1], help="of the owner and of the reader; may be one")
    parser.add_argument("--graphs", default=GRAPHS, help="vLLM's cudagraph_mode of all engines but LMCache's")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU, without host memory")
    parser.add_argument("--lengths", type=int, nargs="+", help="no multiples of 256, LMCache's chunk")
    options = parser.parse_args()
    lengths = options.lengths or ([300, 1000] if options.cpu else [1000, 10_000, 33_000, 65_000])
    rate = 1.0 if options.cpu else copy_rate(*options.gpus)
    repeats = options.prompts * options.again
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ttft-", dir="/tmp") as folder, ExitStack() as stack:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        made, patience = start(engines, stack, max(lengths), options.graphs), 0 if options.cpu else PATIENCE
        bench = Bench(made, engines.block_size, options.prompts, options.again, patience)
        for tokens in lengths:
            bench.measure(tokens, warm=True)
            bench.measure(tokens)
            rows = bench.rows(rate, engines.token_bytes)
            for each in rows:
                if each["tokens"] == tokens:
                    load.show(each)
            if options.write:
                facts: dict[str, Any] = dict(report.facts(engines.gpus))
                facts |= {
                    "prompts": options.prompts,
                    "repeats": repeats,
                    "copy_GBps": round(rate, 1),
                    "wrong": bench.wrong,
                }
                modes = (options.graphs, GRAPHS) if engines.gpus else ("NONE", "NONE")
                facts["graphs"], facts["graphs_lmcache"] = modes
                facts["waited_s"] = round(bench.cores.waited, 1)
                packages = ("torch", "triton", "vllm", "kvmarket", "lmcache")
                print(report.write(options.write, "ttft", rows, packages, **facts))
        print("counters of the reader:", json.dumps(bench.engines["reader"].ask("counters")))
    for line in bench.wrong:
        print("WRONG:", line)
    raise SystemExit(bool(bench.wrong))


if __name__ == "__main__":
    main()
