"""Markets as large as on a busy node: many branches behind a long prompt, many blocks, many tenants.

    python -m bench.registry.scale branches --branches 200000  one engine with branches behind 16K tokens, eight others
    python -m bench.registry.scale blocks --blocks 10000000    32 engines with so many blocks in all, and with a million
    python -m bench.registry.scale tenants --tenants 50000     as many tenants of one engine
    ... --write MACHINE                                      also writes bench/results/MACHINE-scale-SUITE.json

`branches`: kills the service several times, and times how long it takes until the service and every engine know all
offers again; then one more engine joins. Meanwhile the owner steps every 5 ms, and kvmarket's calls in each step are
timed: so long a scheduling thread would wait. `blocks`: the times of a match of 8,192 tokens and of joining, and the
memory of a process. `tenants`: memory per tenant, and the pieces of work in which the service drops a dead engine.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench import report
from bench.registry.joined import BLOCK, Child, Connection, await_all, join_as_scheduler, market_address, prompt
from bench.registry.memory import memory_of, service_memory
from bench.registry.readers import GIVE_UP, HEAD, PROMPT, Reader, branch_owner
from bench.registry.trie import resident
from bench.registry.visible import row, show
from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import PoolRecord
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.space import Space

KILLS = 5


def branches(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for one engine with many branches and `options.engines` others: KILLS kills, then one more engine."""
    total = HEAD + options.branches
    with market_address() as address:
        readers = [Child(Reader, address) for _ in range(options.engines)]
        await_all(readers)
        owner = Child(branch_owner, address, options.branches)
        owner.pipe.recv()
        ask(readers, "know", total)
        place, before = Address(address), {"service": service_memory(address)}
        owner.pipe.send("memory")
        before["owner"] = owner.pipe.recv()
        before["reader"] = max(ask(readers, "memory"))
        peak = Peak(address, [owner, *readers])
        times, again, others = [], [], []
        for kill in range(KILLS):
            take_waits(owner)
            os.kill(ask_status(place).service.pid, signal.SIGKILL)
            start = time.monotonic()
            tell(readers, "told", kill + 1)
            while blocks_of(place) < total and time.monotonic() < start + GIVE_UP:
                peak.look()
                time.sleep(0.05)
            service = time.monotonic() - start
            told = await_all(readers)
            times.append((max([service, *(moment - start for moment, _ in told)]), service))
            again += take_waits(owner)
            others += [wait for _, waits in told for wait in waits]
        everywhere, service = max(times)
        yield number(f"all on offer at the service again, the slowest of {KILLS}", service, "s")
        yield number("and known to be so by every engine", everywhere, "s")
        yield row("a step's wait meanwhile", again, "us", 0, float(np.percentile(again, 10)))
        yield number("a step's wait meanwhile, p99.9", float(np.percentile(again, 99.9)), "us")
        yield row("a step's wait of the others", others, "us", 0, float(np.percentile(others, 10)))
        yield number("a step's wait of the others, p99.9", float(np.percentile(others, 99.9)), "us")
        start = time.monotonic()
        ninth = Child(Reader, address)
        joined = ninth.pipe.recv()
        (known,) = ask([ninth], "know", total)
        waits = take_waits(owner)
        peak.look()
        yield number("one more engine: connect", joined, "s")
        yield number("one more engine: until it knows all", known - start, "s")
        yield number("a step's wait while it joins, p99.9", float(np.percentile(waits, 99.9)), "us")
        for who, most in peak.most.items():
            yield number(f"memory, {who}: most while offering again, over before", most / before[who], "times")
        end([owner, *readers, ninth])


def block_owner(pipe: Connection, address: str, who: int, prompts: int) -> None:
    """An engine that offers so many prompts of `PROMPT` blocks, and stays until it is told to leave."""
    control = join_as_scheduler(address, prompts * PROMPT)
    for each in range(prompts):
        slots = range(each * PROMPT, (each + 1) * PROMPT)
        control.offer(prompt(PROMPT, who, each), slots, control.generations(slots))
    pipe.send("ready")
    pipe.recv()
    control.close()


def blocks(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for `options.owners` engines with a million blocks in all, then with `options.blocks`."""
    for total in (1_000_000, options.blocks):
        prompts = total // options.owners // PROMPT
        held = prompts * options.owners * PROMPT
        with market_address() as address:
            first = Child(Reader, address)
            first.pipe.recv()
            (empty,) = ask([first], "memory")
            start = time.monotonic()
            owners = [Child(block_owner, address, who, prompts) for who in range(options.owners)]
            await_all(owners)
            (known,) = ask([first], "know", held)
            (full,) = ask([first], "memory")
            chance = np.random.default_rng(1)
            seeds = [(int(chance.integers(options.owners)), int(chance.integers(prompts))) for _ in range(2000)]
            (spent,) = ask([first], "match", seeds)
            late_start = time.monotonic()
            late = Child(Reader, address)
            joined = late.pipe.recv()
            (whole,) = ask([late], "know", held)
            name = f"{held:,} blocks on {options.owners} engines"
            yield number(f"{name}: until one engine knows all", known - start, "s")
            yield row(f"{name}: match of {PROMPT * BLOCK:,} tokens", spent, "us", 4 * PROMPT * BLOCK, min(spent))
            yield number(f"{name}: memory of a replica", (full - empty) / (held * BLOCK), "bytes/token")
            yield number(f"{name}: memory of the service", service_memory(address) / (held * BLOCK), "bytes/token")
            yield number(f"{name}: one more engine, connect", joined, "s")
            yield number(f"{name}: one more engine, until it knows all", whole - late_start, "s")
            end([first, late, *owners])


def tenants(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows for one block of each of `options.tenants` tenants, and for the death of their engine."""
    space, count = Space(BLOCK), options.tenants
    pool = PoolRecord("p", count, (Process.current(),), b"")
    space.add_pool(pool)
    before = resident()
    for each in range(count):
        tokens, slot = np.full(BLOCK, each, np.int32), np.array([each])
        space.offer(Offering("p", f"10:tenant {each:032x}", tokens, 0, slot, 1, np.array([1], np.uint64), None))
    yield number(f"{count:,} tenants: memory of each", (resident() - before) / count, "bytes")
    start = time.perf_counter_ns()
    space.drop_pool("p")
    pieces = [(time.perf_counter_ns() - start) / 1e3]
    while space.collecting:
        start = time.perf_counter_ns()
        space.collect()
        pieces.append((time.perf_counter_ns() - start) / 1e3)
    yield row(f"{count:,} tenants: a piece of their engine's death", pieces, "us", 0, min(pieces))
    yield number(f"{count:,} tenants: the longest piece", max(pieces), "us")


class Peak:
    """The largest memory of the service and of the engines at any call of `look`."""

    def __init__(self, address: str, engines: list[Child]) -> None:
        self._address, (self._owner, *self._readers) = address, engines
        self.most = {"service": 0, "owner": 0, "reader": 0}

    def look(self) -> None:
        found = {
            "service": service_memory(self._address),
            "owner": memory_of(self._owner.process.pid),
            "reader": max(memory_of(each.process.pid) for each in self._readers),
        }
        self.most = {who: max(most, found[who]) for who, most in self.most.items()}


def take_waits(owner: Child) -> list[float]:
    """Each step's time in kvmarket since the last call, in us."""
    owner.pipe.send("waits")
    waits: list[float] = owner.pipe.recv()
    return waits


def tell(children: list[Child], *request: Any) -> None:
    """Send the same request to all; `await_all` takes the answers."""
    for child in children:
        child.pipe.send(request)


def ask(children: list[Child], *request: Any) -> list[Any]:
    """Send the same request to all; returns their answers."""
    tell(children, *request)
    return await_all(children)


def end(children: list[Child]) -> None:
    """Have all leave, and wait for the end of their processes."""
    for child in children:
        child.pipe.send(None)
    for child in children:
        child.process.join()


def blocks_of(place: Address) -> int:
    """How many blocks the service has; 0 if it does not answer."""
    try:
        return ask_status(place).blocks
    except RegistryError:
        return 0


def number(name: str, value: float, unit: str) -> dict[str, Any]:
    """A row for one value, without a ceiling."""
    once = round(value, 3)
    found = {"name": name, "bytes": 0, "p10": once, "p50": once, "p90": once, "unit": unit}
    return found | {"ceiling": 0.0, "ratio": 0.0}


SUITES = {"branches": branches, "blocks": blocks, "tenants": tenants}


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-scale-SUITE.json")
    parser.add_argument("--branches", type=int, default=200_000)
    parser.add_argument("--engines", type=int, default=8, help="beside the one with the branches")
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--owners", type=int, default=32, help="engines that share the blocks")
    parser.add_argument("--tenants", type=int, default=50_000)
    options = parser.parse_args()
    speed, rows = report.loop_ms(), []
    for each in SUITES[options.suite](options):
        rows.append(each)
        show([each])
    if options.write:
        settings = {name: value for name, value in vars(options).items() if name not in ("write", "suite")}
        report.write(options.write, f"scale-{options.suite}", rows, loop_ms=speed, settings=settings)


if __name__ == "__main__":
    main()
