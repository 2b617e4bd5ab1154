"""How soon other engines see what an engine publishes, and what a match costs at the same time.

    python -m bench.registry.visible                      prints a table
    python -m bench.registry.visible --write laptop       also writes bench/results/laptop-visible.json

Eight engines together publish 2,000 blocks of 16 tokens a second, in one of two ways: as prompts of 64 blocks, or as
single blocks appended to conversations of 448 blocks and more. Besides, each engine matches a prompt of 8,192 tokens
(an int32 array) once a millisecond, as a scheduler's steps do.

`visible`: the time from the return of `offer` to the return of the first match, in another engine, that finds all its
blocks. For prompts every pair of an offer and another engine counts. For conversations each engine watches one at a
time, and blocks offered before it began to watch do not count. The ceiling is half the time between two matches.
`bytes`: of the tokens published at once. `match`: every call of every engine, as wall time and as CPU time of the
calling thread; the ceiling is to compare the tokens and to make the answer's ints.

Eight engines on a few cores wait for each other, so all times depend on the speed of the CPU, which changes on shared
machines: `loop_ms` in the results is what 20,000 turns of an empty Python loop took before and after the run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import report
from bench.registry.joined import (
    BLOCK,
    Child,
    Connection,
    await_all,
    join_as_scheduler,
    market_address,
    prompt,
    wait_until,
)
from kvmarket.market.offer import Hit

PROMPT_BLOCKS, TAIL, STEP = 512, 64, 0.001
BASE = PROMPT_BLOCKS - TAIL
PATIENCE = 0.5  # seconds without a new block after which a conversation is given up
RING = 8 * TAIL  # slots for published blocks; the oldest are reused


class Plan:
    """The schedule of all offers: engine `who` makes offer `n` at `when(n, who)` seconds after the start."""

    def __init__(self, engines: int, rate: float, seconds: float, *, single: bool) -> None:
        self.engines, self.seconds, self.single = engines, seconds, single
        self.period = engines * (1 if single else TAIL) / rate
        self.offers = int(seconds / self.period)

    def when(self, n: int, who: int) -> float:
        """Seconds after the start; the engines take turns at even intervals."""
        return (n + who / self.engines) * self.period

    def tokens(self, n: int, who: int) -> NDArray[np.int32]:
        """The prompt of 8,192 tokens with offer `n`: a tail after the engine's base, or a new head before it."""
        if self.single:
            return np.concatenate((prompt(BASE, who), prompt(TAIL, who, 1 + n // TAIL)))
        return np.concatenate((prompt(TAIL, who, 1 + n), prompt(BASE, who)))

    def end(self, n: int) -> int:
        """How many leading blocks of that prompt are offered after offer `n`."""
        return BASE + n % TAIL + 1 if self.single else TAIL


class Engine:
    """One of the engines: publishes by the plan, and in each step looks for blocks that others have to offer."""

    def __init__(self, pipe: Connection, who: int, plan: Plan, address: str) -> None:
        self.who, self.plan = who, plan
        self.control = join_as_scheduler(address, BASE + RING)
        self._offer(prompt(BASE, who), list(range(BASE)))
        self.published: list[float] = []  # moments, by offer
        self.seen: list[tuple[int, int, float, float]] = []  # engine, offer, moment seen, start of the search
        self.costs: list[tuple[int, int]] = []  # ns: wall, CPU of this thread
        self.looks: list[float] = []
        self._known: dict[tuple[int, int], NDArray[np.int32]] = {}
        self._others = [other for other in range(plan.engines) if other != who]
        self._pending = [(plan.when(n, other), other, n) for n in range(plan.offers) for other in self._others]
        self._pending.sort(reverse=True)
        self._due: list[tuple[int, int]] = []
        self._talk, self._found, self._grew, self._since = 0, 0, 0.0, 0.0
        pipe.send("ready")
        self._run(pipe.recv())
        pipe.send((self.published, self.seen, self.costs, self.looks))
        pipe.recv()
        self.control.close()

    def _run(self, start: float) -> None:
        look = self._look_at_conversation if self.plan.single else self._look_at_prompts
        step = start
        while (now := time.monotonic() - start) < self.plan.seconds + 1:  # the last offers have a second to be seen
            n = len(self.published)
            if n < self.plan.offers and now >= self.plan.when(n, self.who):
                self._publish(n)
            look(now)
            step = max(step + STEP, time.monotonic())
            wait_until(step)

    def _publish(self, n: int) -> None:
        tokens, end = self._prompt(n, self.who), self.plan.end(n)
        blocks = [n] if self.plan.single else range(n * TAIL, (n + 1) * TAIL)
        slots = [BASE + block % RING for block in blocks]
        self.control.retire(slots)
        self._offer(tokens[: end * BLOCK], slots)
        self.published.append(time.monotonic())

    def _offer(self, tokens: NDArray[np.int32], slots: list[int]) -> None:
        """Offer the last blocks of `tokens`, which are in `slots`."""
        generations = self.control.generations(slots)
        self.control.offer(tokens, slots, generations, first=len(tokens) // BLOCK - len(slots))

    def _look_at_prompts(self, now: float) -> None:
        """Match the oldest prompt that is due and unseen; if there is none, any prompt, for the cost of a match."""
        while self._pending and self._pending[-1][0] <= now:
            self._due.append(self._pending.pop()[1:])
        other, n = self._due[0] if self._due else (self._others[0], 0)
        if self._match(self._prompt(n, other)).blocks >= TAIL and self._due:
            self.seen.append((*self._due.pop(0), self.looks[-1], 0.0))
        elif self._due:
            self._due.append(self._due.pop(0))  # so that a missing prompt does not hold up the others

    def _look_at_conversation(self, now: float) -> None:
        """Match one conversation until all of it is seen, or nothing new for PATIENCE s; then the next engine's."""
        other, first = self._others[self._talk % len(self._others)], self._talk * TAIL
        if first + TAIL > self.plan.offers:
            return
        blocks = self._match(self._prompt(first, other)).blocks - BASE
        if blocks > self._found:
            last = range(first + self._found, first + blocks)
            self.seen.extend((other, n, self.looks[-1], self._since) for n in last)
            self._found, self._grew = blocks, now
        if self._found == TAIL or now - self._grew > PATIENCE:
            self._talk, self._found, self._grew = self._talk + 1, 0, now
            self._since = time.monotonic()

    def _match(self, tokens: NDArray[np.int32]) -> Hit:
        wall, cpu = perf_counter_ns(), thread_time_ns()
        hit = self.control.match(tokens)
        self.costs.append((perf_counter_ns() - wall, thread_time_ns() - cpu))
        self.looks.append(time.monotonic())
        return hit

    def _prompt(self, n: int, who: int) -> NDArray[np.int32]:
        key = who, n // TAIL if self.plan.single else n
        if key not in self._known:
            if len(self._known) > 64:
                self._known.clear()
            self._known[key] = self.plan.tokens(n, who)
        return self._known[key]


def measure(plan: Plan, name: str) -> list[dict[str, Any]]:
    """Make one run by this plan; returns its rows."""
    with market_address() as address:
        children = [Child(Engine, who, plan, address) for who in range(plan.engines)]
        await_all(children)
        start = time.monotonic() + 0.5
        for child in children:
            child.pipe.send(start)
        published, seen, costs, looks = zip(*await_all(children), strict=True)
        for child in children:
            child.pipe.send("leave")
            child.process.join()
    pairs = [
        (moment - published[who][n], published[who][n] >= since) for part in seen for who, n, moment, since in part
    ]
    delays = [max(0.0, delay) * 1e3 for delay, counts in pairs if counts]
    gap = float(np.median(np.concatenate([np.diff(each) for each in looks]))) * 1e3
    took = sum(map(len, published)) / (max(map(max, published)) - start)
    size = 4 * BLOCK * (1 if plan.single else TAIL)
    first = row(f"visible, {name}", delays, "ms", size, gap / 2)
    first["blocks/s"] = round(took * (1 if plan.single else TAIL))
    if not plan.single:
        first["unseen"] = plan.offers * plan.engines * (plan.engines - 1) - len(delays)
    wall, cpu = (np.concatenate([np.array(each)[:, i] for each in costs]) / 1e3 for i in (0, 1))
    least = comparing()
    return [
        first,
        row(f"match, {name}", wall, "us", 4 * BLOCK * PROMPT_BLOCKS, least),
        row(f"match, CPU, {name}", cpu, "us", 4 * BLOCK * PROMPT_BLOCKS, least),
    ]


def row(name: str, samples: Any, unit: str, size: int, ceiling: float) -> dict[str, Any]:
    """One row of the results."""
    p10, p50, p90, p99 = (round(float(value), 3) for value in np.percentile(samples, [10, 50, 90, 99]))
    found = {"name": name, "bytes": size, "p10": p10, "p50": p50, "p90": p90, "p99": p99}
    found |= {"max": round(float(np.max(samples)), 3), "unit": unit, "ceiling": round(ceiling, 3)}
    return found | {"ratio": round(ceiling / p50, 3) if p50 else 0.0, "samples": len(samples)}


def comparing() -> float:
    """Median microseconds of the least work of a match of 8,192 tokens: to compare bytes and make ints."""
    array, ints = prompt(PROMPT_BLOCKS, 0), np.arange(PROMPT_BLOCKS) << 20
    other, spent = array.tobytes(), []
    answer: Callable[[], object] = lambda: (array.tobytes() == other, ints.tolist())  # noqa: E731 - timed as one call
    for _ in range(500):
        begin = perf_counter_ns()
        answer()
        spent.append(perf_counter_ns() - begin)
    return float(np.median(spent)) / 1e3


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-visible.json")
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2000, help="blocks a second, of all engines")
    parser.add_argument("--seconds", type=float, default=20, help="of each of the two ways")
    options = parser.parse_args()
    rows, speed = [], [report.loop_ms()]
    for single, name in ((False, "prompts of 64 blocks"), (True, "single blocks")):
        rows += measure(Plan(options.engines, options.rate, options.seconds, single=single), name)
    show(rows)
    speed.append(report.loop_ms())
    print(f"20,000 turns of a loop: {speed[0]} ms before, {speed[1]} ms after")
    if options.write:
        report.write(options.write, "visible", rows, engines=options.engines, rate=options.rate, loop_ms=speed)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    columns = [*dict.fromkeys(key for each in rows for key in each if key not in ("name", "bytes"))]
    print(f"{'':36}" + "".join(f"{column:>10}" for column in columns))
    for each in rows:
        print(f"{each['name']:36}" + "".join(f"{each.get(column, ''):>10}" for column in columns))


if __name__ == "__main__":
    main()
