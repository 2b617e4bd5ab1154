"""Time to the first token as a client of `vllm serve` sees it: over HTTP, on whatever cores the system gives.

    python -m bench.hook.ttft_http --write h200x2    two GPUs, three servers with dummy weights, some four minutes
    python -m bench.hook.ttft_http --cpu             a tiny model: shows that it runs, its times mean nothing

One request at a time; prompts are token ids; Llama-3.1-8B shape, bf16, vLLM as it comes. Each server has its HTTP
front end and its engine in processes of their own. On the first GPU the owner; on the second the reader, and a server
without the connector. `--prompts` fresh random prompts of each length; each is prefilled once and then asked for
`--again` times from every place, the reader's own cache emptied before its peer's turn. The two servers of the second
GPU take turns, because a server that has idled answers up to 5 ms later than one that has just answered. Time runs at
the client, from the request's first byte until the first token's event has come.

`goal` for the peer's pool: the reader's own hit in the same run, GOAL_BYTES times the time of the prompt's KV at the
rate of a contiguous peer copy, measured in the same run, and GOAL_MS. `extra` of the reader's own hit: the median of
what it took longer than that of the server without the connector in the same round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.commands import ANSWER, prompt_of
from bench.engines.server import Server
from bench.engines.shapes import Engines
from bench.hook.ttft import PEER, Samples, copy_rate, rows_of

PLAIN, OWN = "own prefix cache, hook off", "own prefix cache, hook on"
GOAL_BYTES, GOAL_MS = 1.10, 3.0
VISIBLE = 0.3  # seconds after which an offer has surely reached the other server
PACKAGES = ("torch", "triton", "vllm", "kvmarket")


class Bench:
    """The servers, by name, and what was measured on them."""

    def __init__(self, servers: dict[str, Server], block_size: int) -> None:
        self.servers, self.block_size = servers, block_size
        self.samples: Samples = defaultdict(list)
        self.wrong: list[str] = []

    def measure(self, tokens: int, prompts: int, again: int) -> None:
        """All columns of one length, from `prompts` prompts taken `again` times each; the first prompt warms up."""
        for at in range(prompts + 1):
            prompt = prompt_of([[load.fresh(), tokens]])
            firsts = {self.ask("plain", prompt, "prefill", 0, keep=at > 0)}
            firsts.add(self.ask("owner", prompt, "prefill, hook on", 0, keep=at > 0))
            time.sleep(VISIBLE)
            whole = (tokens - 1) // self.block_size * self.block_size
            for _ in range(again):
                for column in (PEER, OWN):  # each after a request to the other server: all have idled as long
                    firsts.add(self.ask("plain", prompt, PLAIN, whole, keep=at > 0 and column == OWN))
                    firsts.add(self.ask("reader", prompt, column, whole, keep=at > 0))
                self.servers["reader"].reset()
            if len(firsts) > 1:
                self.wrong.append(f"{tokens} tokens: first tokens differ: {sorted(firsts)}")

    def ask(self, server: str, prompt: list[int], column: str, cached: int, *, keep: bool) -> str:
        """Time one request and return its first token; vLLM must say that `cached` tokens were not computed."""
        answer = self.servers[server].complete(prompt, ANSWER)
        if answer["cached"] != cached:
            self.wrong.append(f"{column} {len(prompt)}: {answer['cached']} cached tokens instead of {cached}")
        if keep:
            self.samples[column, len(prompt)].append(answer["ms"])
        return str(answer["first"])

    def rows(self, rate: float, token_bytes: int) -> list[dict[str, Any]]:
        """The rows of the result file so far; `rate` of the contiguous copy in GB/s."""
        return rows_of(self.samples, rate, token_bytes, OWN, {PEER: OWN, OWN: PLAIN}, (GOAL_BYTES, GOAL_MS))


def main() -> None:
    """Measure, print, and write if asked. Exits 1 when a token or a cached count was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-ttft-http.json")
    parser.add_argument("--prompts", type=int, default=7, help="of each length, and one to warm up")
    parser.add_argument("--again", type=int, default=3, help="times that each prompt is taken from every place")
    parser.add_argument("--gpus", type=int, nargs=2, default=[0, 1], help="of the owner and of the reader; may be one")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--lengths", type=int, nargs="+")
    options = parser.parse_args()
    lengths = options.lengths or ([300] if options.cpu else [1000, 10_000, 33_000, 65_000])
    rate = 1.0 if options.cpu else copy_rate(*options.gpus)
    with tempfile.TemporaryDirectory(prefix="http-", dir="/tmp") as folder, ExitStack() as stack:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        share = 0.45 if len(set(options.gpus)) > 1 else 0.3
        more: dict[str, Any] = {"share": share, "longest": max(lengths) + 64}
        servers = {
            "owner": stack.enter_context(engines.serve("owner", 0, address=engines.address, **more)),
            "reader": stack.enter_context(engines.serve("reader", 1, address=engines.address, **more)),
            "plain": stack.enter_context(engines.serve("plain", 1, **more)),
        }
        for server in servers.values():
            server.wait()
        bench = Bench(servers, engines.block_size)
        for tokens in lengths:
            bench.measure(tokens, options.prompts, options.again)
            rows = bench.rows(rate, engines.token_bytes)
            for each in rows:
                if each["tokens"] == tokens:
                    load.show(each)
            if options.write:
                facts: dict[str, Any] = dict(report.facts(engines.gpus))
                facts |= {"prompts": options.prompts, "repeats": options.prompts * options.again}
                facts |= {"copy_GBps": round(rate, 1), "cpu_loop_ms": report.loop_ms(), "wrong": bench.wrong}
                print(report.write(options.write, "ttft-http", rows, PACKAGES, **facts))
        print("metrics of the reader:", json.dumps(servers["reader"].metrics()))
    for line in bench.wrong:
        print("WRONG:", line)
    raise SystemExit(bool(bench.wrong))


if __name__ == "__main__":
    main()
