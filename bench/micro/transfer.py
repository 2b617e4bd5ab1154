"""Whole fetches between two processes, and what they cost a model that runs, beside a contiguous copy of the same run.

    python -m bench.micro.transfer --write h200x2     two GPUs with peer access; some three minutes (40 repeats: 100 s)

Blocks have the shape of Llama-3.1-8B: 32 layers x 64 KiB, 2 MiB. Slots are random on both sides. `bytes` is payload,
counted once. p10, p50 and p90 are the time per fetch in us, with two in flight all the time; `call_p50` is a single
fetch, from the call until it is done. `ceiling` is one contiguous copy of as many bytes by the copy engine, timed the
same way between the fetches (`call_ceiling` likewise), and `ratio` is ceiling over p50. Before a fetch is timed, all
bytes of one are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from bench import report
from bench.micro.baselines import baselines
from bench.micro.both_ways import both_ways
from bench.micro.co_runner import co_runners
from bench.micro.local import local_rows
from bench.micro.peer import SLOT
from bench.micro.suite import Row, Suite
from bench.micro.timing import GPUS, single

SIZES = (512, 128, 32, 8) if GPUS else (4, 2)  # blocks: 1 GiB, 256 MiB, 64 MiB, 16 MiB
LOCAL = (1024, 512, 128) if GPUS else (2,)
SLOTS, STAGING = (2048, 512) if GPUS else (8, 4)


def transfers(suite: Suite) -> Iterator[Row]:
    """Rows of every way and every size, and of checksums on and off."""
    hits = suite.hits
    for blocks in suite.sizes:
        yield suite.row("packed", "paged", hits["packed"], blocks, None)
        yield suite.row("packed_staged", "paged", hits["packed"], blocks, "staged")
        yield suite.row("packed_pull", "paged", hits["packed"], blocks, "pull")
        yield suite.row("contiguous", "contiguous", hits["contiguous"], blocks, None)
        yield suite.row("contiguous_copy", "contiguous", hits["contiguous"], blocks, "copy")
        yield suite.row("contiguous_pull", "contiguous", hits["contiguous"], blocks, "pull")
        yield suite.row("in_place", "paged", hits["in_place"], blocks, None)
        for programs in (4, 8, 12, 16, 24, 132):
            yield suite.row(f"pull_{programs}", "paged", hits["in_place"], blocks, "pull", programs)
    for name, hit in (("checksum_on", hits["packed"]), ("checksum_off", suite.unsummed("packed"))):
        for way in ("pull", "staged"):
            yield suite.row(f"{name}_{way}", "paged", hit, suite.window, way)


def latencies(suite: Suite) -> Iterator[Row]:
    """Rows of the time to fetch one block, and of the caller's CPU time to start a fetch of all blocks."""
    for name, kind in (("one_block", "paged"), ("one_block_contiguous", "contiguous")):
        market, hit = suite.engines[kind].market, suite.hits["in_place" if kind == "paged" else kind]
        times = single(lambda market=market, hit=hit: market.fetch(hit, suite.places[:1]), 5 * suite.repeats)
        ceiling = report.percentiles(single(lambda: suite.ceiling(SLOT), suite.repeats))["p50"]
        p = report.percentiles(times)
        yield {"name": name, "bytes": SLOT, "unit": "us", **p, "ceiling": ceiling, "ratio": ceiling / p["p50"]}
    for name, kind, hit in (
        (f"cpu_{suite.slots}", "paged", suite.hits["in_place"]),
        (f"cpu_{suite.slots}_contiguous", "contiguous", suite.hits["contiguous"]),
    ):
        market, cost = suite.engines[kind].market, []
        for _ in range(suite.repeats):
            start = time.thread_time()
            moved = market.fetch(hit, suite.places)
            cost.append((time.thread_time() - start) * 1e6)
            moved.wait()
        yield {
            "name": name, "bytes": suite.slots * SLOT, "unit": "us", **report.percentiles(cost),
            "ceiling": None, "ratio": None,
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="write bench/results/MACHINE-transfer.json")
    parser.add_argument("--commit", help="what is measured, where the history did not come along with the sources")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each run beside a model")
    parser.add_argument("--only", default="", help="parts to run, with commas: local,transfers,latencies,...")
    given = parser.parse_args(arguments)
    with Suite(given.repeats, SIZES, SLOTS, STAGING) as suite:
        rows = measured(suite, given.only, given.seconds)
    if given.write:
        facts = report.facts(range(GPUS))
        if given.commit:
            facts["commit"] = given.commit
        path = report.write(given.write, "transfer", rows, ["torch", "triton"], repeats=given.repeats, **facts)
        print(f"wrote {path}")


def measured(suite: Suite, only: str, seconds: float) -> list[Row]:
    """Run all parts, or those that `only` names with commas; prints and returns their rows."""
    parts = {
        "local": lambda: local_rows(suite.repeats, LOCAL), "transfers": lambda: transfers(suite),
        "latencies": lambda: latencies(suite), "both_ways": lambda: both_ways(suite, seconds),
        "baselines": lambda: baselines(suite), "co_runners": lambda: co_runners(suite, seconds),
    }  # fmt: skip
    rows: list[Row] = []
    for name, part in parts.items():
        if not only or name in only.split(","):
            start = time.monotonic()
            for row in part():
                print({key: value for key, value in row.items() if value is not None}, flush=True)
                rows.append(row)
            print(f"{name} took {time.monotonic() - start:.0f} s", flush=True)
    return rows


if __name__ == "__main__":
    main()
