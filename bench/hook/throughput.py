"""What the hook costs an engine without hits, and what fetches cost the requests that run at the same time.

    python -m bench.hook.throughput --write h200x2      two GPUs, some three minutes
    python -m bench.hook.throughput --cpu               a tiny model: shows that it runs, its times mean nothing

1. Throughput without hits: an engine with the hook and one without, with caches of one size, share the first GPU. When
these are full, they take turns for `--pairs` pairs of runs of fresh random prompts. Rows: tokens of prompts and answers
per second, and hook on over hook off by pair. `blocks_retired`: how many the first one retired in these runs.
2. Time per output token (TPOT) of requests that run on the engine with the hook, while every `--every` seconds a prefix
of `--prefix` tokens is fetched: by this engine from one on the second GPU, or by that one from this engine. It is
compared with no fetch, and with the same prefixes in the engine's own cache: these requests, too, compute their last
tokens in the engine's steps. `meanwhile`: gaps between tokens that overlap the time from a fetching request's arrival
to its first token; with no fetch, the time in which such requests would have come. Few gaps are long, so their mean
says more than their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess
from bench.engines.shapes import Engines, await_up

WARM_UP = 20  # runs to fill the caches, at most
PACKAGES = ("torch", "triton", "vllm", "kvmarket")
Rows = list[dict[str, Any]]


def batch(options: argparse.Namespace) -> load.Requests:
    """Requests that all come at once, with prompts that share no prefix."""
    one = {"at": 0.0, "tokens": options.output}
    return [{**one, "parts": [[load.fresh(), options.prompt]]} for _ in range(options.requests)]


def rate(engine: EngineProcess, requests: load.Requests, wrong: list[str]) -> float:
    """Tokens per second of one run; a hit is noted in `wrong`."""
    (done,) = load.replay([engine], [requests])
    if hits := sum(one["cached"] for one in done):
        wrong.append(f"{hits} tokens were hits in a run without any")
    tokens = sum(count for request in requests for _, count in request["parts"]) + sum(one["count"] for one in done)
    return tokens / load.span(done)


def retired(hook: EngineProcess) -> int:
    """How many offered blocks this engine has retired because their pages were reused."""
    return int(hook.ask("counters").get("blocks_retired", 0))


def warm_up(hook: EngineProcess, plain: EngineProcess, options: argparse.Namespace, wrong: list[str]) -> int:
    """Run until the caches are full, as in an engine that has run for long; returns `retired(hook)` then."""
    for _ in range(WARM_UP):
        for engine in (hook, plain):
            rate(engine, batch(options), wrong)
        if found := retired(hook):
            return found
    return 0


def no_hits(hook: EngineProcess, plain: EngineProcess, options: argparse.Namespace, wrong: list[str]) -> Rows:
    """The rows of runs without hits; which engine begins a pair alternates."""
    sides: dict[str, tuple[EngineProcess, list[float]]] = {"on": (hook, []), "off": (plain, [])}
    before = warm_up(hook, plain, options, wrong)
    for pair in range(options.pairs):
        requests = batch(options)
        for engine, rates in list(sides.values())[:: 1 if pair % 2 else -1]:
            rates.append(rate(engine, requests, wrong))
    on, off = sides["on"][1], sides["off"][1]
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    more = {"pairs": options.pairs, "requests": options.requests, "prompt": options.prompt, "output": options.output}
    more["blocks_retired"] = retired(hook) - before
    base = report.percentiles(off)["p50"]
    return [
        load.show(load.row("tokens per second, no hits, hook off", off, "tokens/s", base, **more)),
        load.show(load.row("tokens per second, no hits, hook on", on, "tokens/s", base, **more)),
        load.show(load.row("hook on over hook off, pair by pair", ratios, "ratio", 1.0, **more)),
    ]


class Fetches:
    """Requests that decode on `hook`, while prefixes are fetched by it and from it."""

    def __init__(self, hook: EngineProcess, other: EngineProcess, size: int, options: argparse.Namespace) -> None:
        self.hook, self.other, self.size, self.options = hook, other, size, options
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.wrong: list[str] = []
        self._prefixes = [load.fresh() for _ in range(options.prefixes)]

    def running(self) -> load.Requests:
        """The requests whose tokens are timed."""
        return batch(argparse.Namespace(**{**vars(self.options), "output": self.options.running_output}))

    def askers(self) -> load.Requests:
        """One request for each prefix, one after the other, each with its own last 16 tokens."""
        every, long = self.options.every, self.options.prefix
        return [
            {"at": self.options.settle + every * i, "parts": [[seed, long], [load.fresh(), 16]], "tokens": 1}
            for i, seed in enumerate(self._prefixes)
        ]

    def note(self, mode: str, running: load.Requests, askers: load.Requests) -> None:
        """Keep the times of both; note in `wrong` each of `askers` whose cached tokens are not the whole prefix."""
        kept = self.samples.setdefault(mode, {"tpot": [], "gaps": [], "meanwhile": [], "first": []})
        begin = min(one["at"] for one in running) + self.options.settle
        windows = [(one["at"], one["first"]) for one in askers] or [
            (begin, begin + self.options.every * self.options.prefixes)
        ]
        if not (meanwhile := load.gaps(running, windows)):
            raise SystemExit(f"{mode}: no token came while fetches ran; give a longer --running-output")
        kept["tpot"] += load.per_token(running)
        kept["gaps"] += load.gaps(running)
        kept["meanwhile"] += meanwhile
        kept["first"] += load.first_tokens(askers)
        whole = self.options.prefix
        if odd := [one["cached"] for one in askers if one["cached"] != whole]:
            self.wrong.append(f"{mode}: {odd} cached tokens instead of {whole}")

    def here(self, mode: str, with_askers: bool) -> None:
        """One run in which all requests go to `hook`."""
        running, askers = self.running(), self.askers() if with_askers else []
        (done,) = load.replay([self.hook], [running + askers], times=True)
        ends = [one for one in done if one["count"] == 1]
        self.note(mode, [one for one in done if one["count"] > 1], ends)

    def fill(self, engine: EngineProcess) -> None:
        """Have `engine` compute and offer all prefixes."""
        load.replay([engine], [[{**one, "at": 0.0} for one in self.askers()]], window=1)

    def measure(self, rounds: int) -> None:
        """Measure all modes, `rounds` times: after a round the engines hold what the next one needs."""
        self.fill(self.other)
        for _ in range(rounds):
            self.hook.ask("reset")
            self.here("no fetch", False)
            self.here("fetched by this engine", True)
            self.here("prefix in its own cache", True)
            self.other.ask("reset")
            done = load.replay([self.hook, self.other], [self.running(), self.askers()], times=True)
            self.note("fetched from this engine", done[0], done[1])

    def rows(self) -> Rows:
        """The rows: TPOT per request, and the gaps between tokens, in all and during fetches."""
        found = []
        base, usual = (report.percentiles(self.samples["no fetch"][kind])["p50"] for kind in ("tpot", "meanwhile"))
        for mode, kept in self.samples.items():
            between, inside = load.spread(kept["gaps"]), load.spread(kept["meanwhile"])
            more: dict[str, Any] = {"gap_p50": between["p50"], "gap_p99": between["p99"]}
            more |= {"meanwhile_p50": inside["p50"], "meanwhile_p99": inside["p99"]}
            more |= {"meanwhile_mean": round(statistics.fmean(kept["meanwhile"]), 3)}
            more |= {"meanwhile_slower_percent": round(100 * (inside["p50"] / usual - 1), 2)}
            if kept["first"]:
                more |= {"bytes": self.size, "fetch_first_token_ms": load.spread(kept["first"])["p50"]}
            made = load.row(f"TPOT, {mode}", kept["tpot"], "ms", base, mode=mode, **more)
            made["slower_percent"] = round(100 * (made["p50"] / base - 1), 2)
            found.append(load.show(made))
        return found


def main() -> None:
    """Measure, print, and write if asked. Exits with 1 for a hit where none may be, or a missing one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-throughput.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--pairs", type=int, help="of runs with no hits (10; CPU: 2)")
    parser.add_argument("--requests", type=int, help="at a time (48; CPU: 4)")
    parser.add_argument("--prompt", type=int, help="tokens of each (1,024; CPU: 128)")
    parser.add_argument("--output", type=int, help="tokens of each answer (96; CPU: 16)")
    parser.add_argument("--prefix", type=int, help="tokens of each fetch (32,768; CPU: 512)")
    parser.add_argument("--prefixes", type=int, help="fetches in a run (8; CPU: 3)")
    parser.add_argument("--running-output", type=int, help="tokens of each answer while fetches run (192)")
    parser.add_argument("--every", type=float, default=0.15, help="seconds between fetches")
    parser.add_argument("--settle", type=float, help="seconds before the first fetch (1.2; CPU: 0.1)")
    parser.add_argument("--rounds", type=int, help="of the runs with fetches (3; CPU: 1)")
    options = parser.parse_args()
    defaults = dict(pairs=10, requests=48, prompt=1024, output=96, prefix=32_768, prefixes=8, running_output=192)
    defaults |= dict(settle=1.2, rounds=3)
    tiny = dict(pairs=2, requests=4, prompt=128, output=16, prefix=512, prefixes=3, running_output=192)
    tiny |= dict(settle=0.1, rounds=1)
    for name, value in (tiny if options.cpu else defaults).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    wrong: list[str] = []
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="throughput-", dir="/tmp") as folder:
        engines = Engines(Path(folder), [] if options.cpu else options.gpus)
        sizes: dict[str, Any] = {"longest": options.prefix + 1024, "seqs": max(64, options.requests + 8)}
        if options.cpu:
            sizes["llm"] = {"num_gpu_blocks_override": 128}
        hook = engines.start("hook", 0, share=0.47, address=engines.address, **sizes)
        other = engines.start("other", 1, share=0.6, address=engines.address, **sizes)
        plain = engines.start("plain", 0, share=0.47, **sizes)
        with ExitStack() as stack:
            await_up(stack, (hook, other, plain))
            rows += no_hits(hook, plain, options, wrong)
            write(options, rows, wrong)
            plain.close()
            fetches = Fetches(hook, other, options.prefix * engines.token_bytes, options)
            fetches.measure(options.rounds)
            rows += fetches.rows()
            wrong += fetches.wrong
            print("counters of the engine with the hook:", hook.ask("counters"))
    write(options, rows, wrong)
    for line in wrong:
        print("WRONG:", line)
    raise SystemExit(bool(wrong))


def write(options: argparse.Namespace, rows: Rows, wrong: list[str]) -> None:
    """Write the rows so far, if asked."""
    if options.write:
        settings = {name: value for name, value in vars(options).items() if name != "write"}
        facts = report.facts([] if options.cpu else options.gpus)
        print(report.write(options.write, "throughput", rows, PACKAGES, settings=settings, wrong=wrong, **facts))


if __name__ == "__main__":
    main()
