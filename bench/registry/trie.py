"""Time and memory of the prefix trie, beside a trie with a dict for each token, and beside a bare copy.

    python -m bench.registry.trie                      prints a table
    python -m bench.registry.trie --write laptop       also writes bench/results/laptop-trie.json

10,000 prompts of 8,192 tokens that share 100 heads: a million blocks of 16 tokens. `bytes`: the tokens of a prompt. The
ceiling of a call is its least work: to copy or compare those bytes, and to make the ints of the answer.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from bench import report
from bench.registry.dict_trie import DictTrie
from kvmarket.registry.trie.prefix_trie import PrefixTrie

BLOCK, PROMPTS, HEADS, HEAD_BLOCKS, BLOCKS = 16, 10_000, 100, 416, 512
TOKENS = BLOCK * BLOCKS
VOCABULARY = 128_000


class Prompts:
    """The tokens of all prompts, made from a seed; `fresh` prompts share no prefix with them."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = np.random.default_rng(seed)
        self._heads = self._draw(HEADS, HEAD_BLOCKS * BLOCK)
        self._tails = self._draw(PROMPTS, TOKENS - HEAD_BLOCKS * BLOCK)

    def _draw(self, *shape: int) -> NDArray[np.int32]:
        return self._chance.integers(0, VOCABULARY, shape, dtype=np.int32)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return np.concatenate((self._heads[index % HEADS], self._tails[index]))

    def fresh(self) -> NDArray[np.int32]:
        return self._draw(TOKENS)


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def timed(call: Callable[[object], object], arguments: Iterable[object]) -> NDArray[np.float64]:
    """Return the microseconds of each call. Garbage collection stays on, as it is for users."""
    spent = []
    for argument in arguments:
        start = perf_counter_ns()
        call(argument)
        spent.append(perf_counter_ns() - start)
    return np.array(spent) / 1e3


def row(name: str, spent: NDArray[np.float64], ceiling: float, baseline: float | None = None) -> dict[str, object]:
    """Return one row of the results, times in microseconds."""
    p10, p50, p90, p99 = (round(float(value), 2) for value in np.percentile(spent, [10, 50, 90, 99]))
    found: dict[str, object] = {"name": name, "bytes": 4 * TOKENS, "p10": p10, "p50": p50, "p90": p90, "p99": p99}
    found |= {"unit": "us", "ceiling": round(ceiling, 2), "ratio": round(ceiling / p50, 3)}
    if baseline is not None:
        found |= {"dict_trie": round(baseline, 1), "speedup": round(baseline / p50, 1)}
    return found


def baselines(prompts: Prompts, count: int) -> tuple[float, float]:
    """Return the median microseconds of match and insert of a dict trie; it has few prompts, which favours it."""
    trie = DictTrie(BLOCK)
    known = [prompts[index * 97].tolist() for index in range(count)]
    offers = list(range(BLOCKS))
    for prompt in known:
        trie.insert(prompt, offers)
    match = timed(trie.match, known)
    insert = timed(lambda prompt: trie.insert(prompt, offers), [prompts.fresh().tolist() for _ in range(count)])
    return float(np.median(match)), float(np.median(insert))


def measure(calls: int) -> list[dict[str, object]]:
    """Build the trie of a million blocks and time each kind of call."""
    prompts, chance = Prompts(), random.Random(1)
    offers = np.random.default_rng(2).permutation(np.arange(2_000_000, dtype=np.int64)) | 1 << 40  # as slots of a pool
    match_baseline, insert_baseline = baselines(prompts, 40)
    gc.collect()

    trie = PrefixTrie(BLOCK)
    before = resident()
    build = []
    for index in range(PROMPTS):
        prompt, start = prompts[index], len(trie)
        given = np.concatenate((trie.match(prompt), offers[start : start + BLOCKS])).astype(np.int64)[:BLOCKS]
        start_ns = perf_counter_ns()
        trie.insert(prompt, given)
        build.append((perf_counter_ns() - start_ns) / 1e3)
    per_token = (resident() - before) / (len(trie) * BLOCK)

    picks = [chance.randrange(PROMPTS) for _ in range(calls)]
    arrays = [prompts[index] for index in picks]
    some, ints = arrays[0].tobytes(), np.arange(BLOCKS) << 20
    answer = float(np.median(timed(lambda array: (array.tobytes() == some, ints.tolist()), arrays)))  # type: ignore[attr-defined]
    copy = float(np.median(timed(lambda array: array.tobytes(), arrays)))  # type: ignore[attr-defined]
    rows = [
        row("match, int32 array", timed(trie.match, arrays), answer, match_baseline),
        row(
            "match, list", timed(trie.match, [array.tolist() for array in arrays[: calls // 4]]), answer, match_baseline
        ),
        row("match, nothing found", timed(trie.match, [prompts.fresh() for _ in range(calls)]), copy),
        row("insert, shared head, building", np.array(build), copy),
    ]
    new = [(prompts.fresh(), list(range(at << 40, (at << 40) + BLOCKS))) for at in range(1, calls // 4 + 1)]
    inserted = timed(lambda given: trie.insert(*given), new)  # type: ignore[misc]
    rows.append(row("insert, all new", inserted, copy, insert_baseline))
    rows.append(row("remove, all of a prompt", timed(trie.remove, [given[1] for given in new]), copy))
    single = [[offer] for offer in trie.match(arrays[0])[: HEAD_BLOCKS - 1 : -1]]
    rows.append(row("remove, one offer, last block first", timed(trie.remove, single), copy))
    memory = round(per_token, 2)
    rows.append({"name": "memory", "bytes": 4 * TOKENS, "p10": memory, "p50": memory, "p90": memory})
    rows[-1] |= {"unit": "bytes/token", "ceiling": 4.0, "ratio": round(4 / memory, 3)}
    return rows


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-trie.json")
    parser.add_argument("--calls", type=int, default=2000, help="calls timed for each row")
    options = parser.parse_args()
    rows = measure(options.calls)
    columns = ["p10", "p50", "p90", "p99", "unit", "ceiling", "ratio", "dict_trie", "speedup"]
    print(f"{'':36}" + "".join(f"{column:>12}" for column in columns))
    for each in rows:
        print(f"{each['name']:36}" + "".join(f"{each.get(column, ''):>12}" for column in columns))
    if options.write:
        report.write(options.write, "trie", rows)


if __name__ == "__main__":
    main()
