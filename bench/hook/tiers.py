"""What lent memory brings an engine whose cache is too small for the documents that it is asked about.

    python -m bench.hook.tiers --gpus 0 1 --write h200x2      the engine on the first GPU, the lender on the second
    python -m bench.hook.tiers --gpus 0 --write h200x1        both on one GPU; ten minutes
    ... --only lenders --add                                  these modes again; the others as the file has them
    python -m bench.hook.tiers --cpu                          a tiny model: shows that it runs, its times mean nothing

Each of LOADS asks one engine about documents in random order, each time with a new question; so many requests run at a
time. The documents have `outgrow` times the size of the engine's cache, which holds `--own-gb`. Modes:
"no tier"; "host offload", vLLM's OffloadingConnector; "all in its own cache", with a cache that holds all documents;
"lender, host", `kvmarket lend --host-gb`; "lender, GPU", `kvmarket lend --gpu`. With one GPU that lender's memory is on
the engine's own: it shows what the hook and the lender cost and bring, and nothing about a link.

Every tier can hold all documents. Before the timed requests, each document is asked about once, and a lender has time
to copy what it may. The rate of the engine with all documents in its own cache is the ceiling.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from bench import report
from bench.engines import load
from bench.engines.process import EngineProcess, child_environment
from bench.engines.shapes import OTHER, WEIGHTS, Engines, await_up, gpu_bytes
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address

PACKAGES = ("torch", "triton", "vllm", "kvmarket")
SPARE = 1.1  # memory of a tier, in sizes of all documents
QUIET_SECONDS = 1.5  # a lender that has copied nothing for so long is done
LENT_SECONDS = 120.0
NO_TIER, OFFLOAD, ALL = "no tier", "host offload", "all in its own cache"
LENDERS = HOST, GPU = "lender, host", "lender, GPU"


@dataclass(frozen=True)
class Load:
    """Questions about documents of `document` tokens, `window` at a time, answered with `answer` tokens."""

    name: str
    document: int
    answer: int
    outgrow: float
    window: int


LOADS = (Load("16K tokens, 64 of answer", 16_384, 64, 3, 4), Load("32K tokens, 8 of answer", 32_768, 8, 4, 2))
TINY = (Load("1K tokens, 8 of answer", 1024, 8, 3, 2),)


class Lent:
    """A `kvmarket lend` process in the market of the engines. `reset` empties it."""

    def __init__(self, address: str, *memory: str) -> None:
        command = [sys.executable, "-m", "kvmarket.cli", "lend", "--address", address, *memory]
        self._process = subprocess.Popen(command, env=child_environment({}))
        self._place = Address(address)
        self._wait(lambda: any(member.lends for member in ask_status(self._place).members))

    def reset(self) -> None:
        """Give all memory back, then lend it again."""
        self._process.send_signal(signal.SIGUSR1)
        self._wait(lambda: not any(member.lends for member in ask_status(self._place).members))
        self._process.send_signal(signal.SIGUSR2)
        self._wait(lambda: any(member.lends for member in ask_status(self._place).members))

    def settle(self) -> int:
        """Wait until nothing has been copied for a while; return the number of blocks on offer."""
        found, since, end = -1, time.monotonic(), time.monotonic() + LENT_SECONDS
        while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < end:
            now = sum(member.offers for member in ask_status(self._place).members if member.lends)
            if now != found:
                found, since = now, time.monotonic()
            time.sleep(0.1)
        return found

    def _wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LENT_SECONDS
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the lender does not lend; what it wrote above says why")
            time.sleep(0.05)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


class Tiers:
    """The runs of all modes, and their rows."""

    def __init__(self, options: argparse.Namespace, engines: Engines) -> None:
        self.options, self.engines = options, engines
        self.loads = TINY if options.cpu else LOADS
        self.own = int(options.own_gb * 1e9)
        self.rows: list[dict[str, Any]] = []
        self._plans = {each: self._plan(each) for each in self.loads}
        self._rates: dict[tuple[str, str], float] = {}  # by load and mode
        if options.add:
            rows = json.loads((report.RESULTS / f"{options.write}-tiers.json").read_text())["rows"]
            self.rows = [row for row in rows if (row["mode"] in LENDERS) != (options.only == "lenders")]
            self._rates = {(row["load"], row["mode"]): row["p50"] for row in self.rows}
        self.most = max(len(first) * each.document for each, (first, _) in self._plans.items()) * engines.token_bytes

    def _plan(self, each: Load) -> tuple[load.Requests, load.Requests]:
        """One request about each document, then all that are timed."""
        count = max(2, int(each.outgrow * self.own / (each.document * self.engines.token_bytes)))
        documents, chance = [[load.fresh(), each.document] for _ in range(count)], random.Random(1)

        def ask(document: list[int]) -> dict[str, Any]:
            return {"at": 0.0, "parts": [document, [load.fresh(), 32]], "tokens": each.answer}

        return list(map(ask, documents)), [ask(chance.choice(documents)) for _ in range(self.options.requests)]

    def start(self, name: str, cache: float, **options: Any) -> EngineProcess:
        """Start an engine whose cache has so many bytes."""
        longest = max(each.document for each in self.loads) + 256
        llm = options.pop("llm", {})
        if self.engines.gpus:
            llm["kv_cache_memory_bytes"] = int(cache)
        else:
            llm["num_gpu_blocks_override"] = int(cache) // (self.engines.token_bytes * self.engines.block_size)
        return self.engines.start(name, 0, share=0.5, longest=longest, llm=llm, **options)

    def run(self, mode: str, engine: EngineProcess, lent: Lent | None = None) -> None:
        """Run all loads on an engine."""
        warm = [{"at": 0.0, "parts": [[load.fresh(), 512]], "tokens": 8}]
        for _ in range(2):  # compile kernels and capture graphs
            load.replay([engine], [[{**warm[0], "parts": [[load.fresh(), 512]]}] * 4])
        for each, (first, asked) in self._plans.items():
            if lent is not None:
                lent.reset()
            load.replay([engine], [first], each.window)
            blocks = lent.settle() if lent is not None else 0
            before, rates, done = _from_lenders(engine), [], []
            for _ in range(self.options.repeats):
                done += (run := load.replay([engine], [asked], each.window)[0])
                rates.append(len(run) / load.span(run))
            more = {"lent_blocks": blocks, "blocks_from_lenders": _from_lenders(engine) - before} if lent else {}
            self._note(each, mode, rates, done, more)

    def _note(self, each: Load, mode: str, rates: list[float], done: load.Requests, more: dict[str, Any]) -> None:
        """Add the row of one load and mode, and write all if asked."""
        first, rate = load.spread(load.first_tokens(done)), report.percentiles(rates)["p50"]
        self._rates[each.name, mode] = rate
        cached = sum(one["cached"] for one in done)
        row = load.row(
            f"{each.name}: {mode}", rates, "requests/s", self._rates.get((each.name, ALL)), mode=mode, **more
        )
        row |= {"load": each.name, "first_p50_ms": first["p50"], "first_p90_ms": first["p90"]}
        row |= {"computed_share": round(1 - cached / sum(each.document + 32 for _ in done), 4)}
        if (none := self._rates.get((each.name, NO_TIER))) is not None:
            row["over_no_tier"] = round(rate / none, 3)
        self.rows.append(load.show(row))
        if self.options.write:
            settings = {name: value for name, value in vars(self.options).items() if name != "write"}
            settings["loads"] = [vars(one) | {"documents": len(self._plans[one][0])} for one in self.loads]
            facts = report.facts(self.engines.gpus)
            report.write(self.options.write, "tiers", self.rows, PACKAGES, settings=settings, **facts)


def _from_lenders(engine: EngineProcess) -> int:
    """How many blocks this engine has fetched from lenders."""
    ranks = engine.ask("ranks")["ranks"]
    return sum(int(each.get("blocks_fetched_from_lenders", 0)) for each in ranks)


@contextmanager
def lending(address: str, *memory: str) -> Iterator[Lent]:
    """A lender of this memory, until the end."""
    lent = Lent(address, *memory)
    try:
        yield lent
    finally:
        lent.close()


def without(tiers: Tiers, most: float) -> None:
    """Run the modes without kvmarket."""
    with ExitStack() as stack:
        made = {ALL: tiers.start("all", most), NO_TIER: tiers.start("none", tiers.own)}
        if tiers.engines.gpus:
            made[OFFLOAD] = tiers.start("offload", tiers.own, llm={"kv_offloading_size": most / (1 << 30)})
        await_up(stack, made.values())
        for mode, engine in made.items():
            tiers.run(mode, engine)


def with_lenders(tiers: Tiers, most: float) -> None:
    """Run the modes with a lender, on one engine."""
    gpus = tiers.engines.gpus
    with ExitStack() as stack:
        engine = tiers.start("hook", tiers.own, address=tiers.engines.address)
        await_up(stack, [engine])
        address, gb = tiers.engines.address, str(most / 1e9)
        with lending(address, *(["--gpu", str(gpus[-1])] if gpus else []), "--host-gb", gb) as lent:
            tiers.run(HOST, engine, lent)
        if gpus:
            with lending(address, "--gpu", str(gpus[-1]), "--gb", gb) as lent:
                tiers.run(GPU, engine, lent)
        print("counters of the engine with the hook:", engine.ask("counters"))


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-tiers.json")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0, 1], help="the engine's, and the lender's")
    parser.add_argument("--cpu", action="store_true", help="a tiny model on the CPU, without host offload")
    parser.add_argument("--own-gb", type=float, help="the engine's cache (13; CPU: 0.001)")
    parser.add_argument("--only", choices=("others", "lenders"), help="run these modes alone")
    parser.add_argument("--add", action="store_true", help="to the rows of the other modes in the file of --write")
    parser.add_argument("--requests", type=int, help="of a timed run (48; CPU: 6)")
    parser.add_argument("--repeats", type=int, help="timed runs of each load and mode (2; CPU: 1)")
    options = parser.parse_args()
    if options.add and not options.write:
        parser.error("--add without --write: say to which file")
    usual: dict[str, Any] = {"own_gb": 13.0, "requests": 48, "repeats": 2}
    tiny: dict[str, Any] = {"own_gb": 0.0012, "requests": 6, "repeats": 1}
    for name, value in (tiny if options.cpu else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    with tempfile.TemporaryDirectory(prefix="tiers-", dir="/tmp") as folder:
        tiers = Tiers(options, Engines(Path(folder), [] if options.cpu else options.gpus))
        if not options.cpu:
            _check_room(tiers)
        for modes, run in (("others", without), ("lenders", with_lenders)):
            if options.only in (None, modes):
                run(tiers, SPARE * tiers.most)


def _check_room(tiers: Tiers) -> None:
    """Exit with a message if the engines that run at a time, or the engine and the lender, do not fit into a GPU."""
    most, engine = SPARE * tiers.most, WEIGHTS + OTHER
    needed = max(most + 2 * tiers.own + 3 * engine, most + tiers.own + engine)
    if needed > (room := gpu_bytes(tiers.engines.gpus[0])):
        pynvml.nvmlShutdown()
        raise SystemExit(f"{needed / 1e9:.0f} GB of a GPU with {room / 1e9:.0f}; give a smaller --own-gb")


if __name__ == "__main__":
    main()
