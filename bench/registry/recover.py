"""How soon all matches are right again after an engine, or the service, was killed.

    python -m bench.registry.recover --kills 20                      prints a table
    python -m bench.registry.recover --kills 100 --write laptop      also writes bench/results/laptop-recover.json

`engine killed`: the time until no other engine matches a block of the dead one. `service killed`: right after the kill
each engine publishes a new prompt and retires an old one; the time until every engine matches, in one step, all new and
kept prompts of all engines, and nothing of the retired ones. Each time is that of the slowest engine. Engines match
once a step, a millisecond, and publish and retire every `LOAD_EVERY` steps. The ceiling is one step.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import report
from bench.registry.joined import BLOCK, Child, Connection, await_all, join, market_address, prompt
from bench.registry.visible import show
from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address

BLOCKS, STEP, GIVE_UP = 64, 0.001, 60.0
LOAD_EVERY = 8  # steps
GOALS = {"engine": 1000.0, "service": 2000.0}  # ms
VICTIM = 1 << 20  # seed of its prompts: larger than those of the engines


class Engine:
    """Publishes, retires and matches in a loop; on request it reports when certain prompts match as they should."""

    def __init__(self, pipe: Connection, who: int, address: str) -> None:
        self.who, self.pipe = who, pipe
        self.market = join(address, 3 * BLOCKS)
        self.steps = 0
        self.wanted: list[tuple[NDArray[np.int32], int]] = []  # prompts, and how many blocks of each must match
        pipe.send("ready")
        while self._step():
            time.sleep(STEP)
        self.market.close()

    def _step(self) -> bool:
        if self.pipe.poll():
            message = self.pipe.recv()
            if message is None:
                return False
            getattr(self, message[0])(*message[1:])
        self.steps += 1
        if self.steps % LOAD_EVERY == 0:
            self._publish(prompt(BLOCKS, self.who, VICTIM + self.steps), 2)
        if self.wanted:
            self._look()
        else:
            self.market.match(prompt(BLOCKS, self.who, 0))
        return True

    def expect(self, wanted: list[tuple[tuple[int, ...], int]]) -> None:
        """Match these prompts until each has so many blocks; then send the moment (``time.monotonic``)."""
        self.wanted = [(prompt(BLOCKS, *seed), blocks) for seed, blocks in wanted]

    def turn(self, number: int) -> None:
        """Publish prompt `number` into the slots of prompt `number - 2`, which is retired."""
        self._publish(prompt(BLOCKS, self.who, number), number % 2)

    def _publish(self, tokens: NDArray[np.int32], part: int) -> None:
        slots = list(range(part * BLOCKS, (part + 1) * BLOCKS))
        self.market.retire(slots)
        self.market.publish(tokens, slots)

    def _look(self) -> None:
        if all(self.market.match(tokens).blocks == blocks for tokens, blocks in self.wanted):
            self.wanted = []
            self.pipe.send(time.monotonic())


def publish_and_wait(pipe: Connection, who: int, address: str) -> None:
    """The engine that is killed: it publishes one prompt and waits."""
    market = join(address, BLOCKS)
    market.publish(prompt(BLOCKS, VICTIM, who), list(range(BLOCKS)))
    pipe.send("ready")
    pipe.recv()


def slowest(children: list[Child], since: float) -> float:
    """Milliseconds from `since` until the last child found what it expects. Raises TimeoutError after GIVE_UP s."""
    for child in children:
        if not child.pipe.poll(GIVE_UP):
            raise TimeoutError(f"matches are still wrong {GIVE_UP:.0f} s after the kill")
    return (max(await_all(children)) - since) * 1e3


def tell(children: list[Child], *message: Any) -> None:
    """Send the same message to all."""
    for child in children:
        child.pipe.send(message)


def kill_engines(children: list[Child], address: str, kills: int) -> list[float]:
    """Kill engines, one after the other; milliseconds for each kill."""
    found = []
    for number in range(kills):
        victim = Child(publish_and_wait, number, address)
        victim.pipe.recv()
        tell(children, "expect", [((VICTIM, number), BLOCKS)])
        slowest(children, 0.0)
        tell(children, "expect", [((VICTIM, number), 0)])
        time.sleep(0.02)
        start = time.monotonic()
        victim.kill()
        found.append(slowest(children, start))
        victim.process.join()
    return found


def kill_services(children: list[Child], address: str, kills: int) -> list[float]:
    """Kill the service again and again; milliseconds for each kill."""
    found = []
    everybody = range(len(children))
    for number in range(1, kills + 1):
        if number == 1:
            tell(children, "turn", 1)
        wanted = [((who, number), BLOCKS) for who in everybody]
        tell(children, "expect", wanted)
        slowest(children, 0.0)
        pid = service_of(Address(address))
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        tell(children, "turn", number + 1)
        new = [((who, number + 1), BLOCKS) for who in everybody]
        tell(children, "expect", [*wanted, *new, *(((who, number - 1), 0) for who in everybody)])
        found.append(slowest(children, start))
    return found


def service_of(place: Address) -> int:
    """The process number of the service, once it answers. Raises RegistryError after GIVE_UP s."""
    deadline = time.monotonic() + GIVE_UP
    while True:
        try:
            return ask_status(place).service.pid
        except RegistryError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def row(what: str, times: list[float]) -> dict[str, Any]:
    """One row of the results."""
    p10, p50, p90, p99 = (round(float(value), 2) for value in np.percentile(times, [10, 50, 90, 99]))
    found = {"name": f"{what} killed", "bytes": 4 * BLOCK * BLOCKS, "p10": p10, "p50": p50, "p90": p90, "p99": p99}
    found |= {"max": round(max(times), 2), "unit": "ms", "ceiling": STEP * 1e3, "ratio": round(STEP * 1e3 / p50, 4)}
    within = sum(each <= GOALS[what] for each in times)
    return found | {"kills": len(times), "goal": GOALS[what], "within": within}


def measure(engines: int, kills: int) -> list[dict[str, Any]]:
    """Measure both kinds of kills; returns their rows."""
    with market_address() as address:
        children = [Child(Engine, who, address) for who in range(engines)]
        await_all(children)
        killers = (("engine", kill_engines), ("service", kill_services))
        rows = [row(what, kill(children, address, kills)) for what, kill in killers]
        for child in children:
            child.pipe.send(None)
            child.process.join()
        while Path(address).exists():  # the service ends by itself
            time.sleep(0.1)
    return rows


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-recover.json")
    parser.add_argument("--engines", type=int, default=4, help="engines that go on")
    parser.add_argument("--kills", type=int, default=20, help="of engines, and as many of the service")
    options = parser.parse_args()
    rows = measure(options.engines, options.kills)
    show(rows)
    if options.write:
        report.write(options.write, "recover", rows, engines=options.engines)


if __name__ == "__main__":
    main()
