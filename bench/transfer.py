"""Whole fetches between two processes, and what they cost their neighbours, beside the contiguous copy of the same run.

    python -m bench.transfer --write h200x2     two GPUs with peer access; some three minutes

Blocks of a Llama-3.1-8B shape: 32 layers x 64 KiB, 2 MiB. Slots are random on both sides. `bytes` is payload, counted
once. p10, p50, p90 are of the time per fetch while two are under way all the time, in us; `call_p50` is a single fetch
from the call until `done()` is true. `ceiling` is one contiguous copy of as many bytes by the copy engine, timed the
same way in between (`call_ceiling` likewise), and `ratio` is ceiling over p50. Every row's bytes are compared once.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import report
from bench.baselines import baselines
from bench.both_ways import both_ways
from bench.co_runner import co_runners
from bench.local import local_rows
from bench.peer import BLOCK, SLOT, Engine, Peer
from bench.timing import Handle, single, sustained
from kvmarket import Hit
from kvmarket.kernels.shape import LINK

SIZES = (512, 128, 32, 8)  # blocks: 1 GiB, 256 MiB, 64 MiB, 16 MiB
SLOTS = 2048
STAGING = 512
Row = dict[str, Any]


class Suite:
    """Two pairs of engines, of paged and of contiguous slots; the first of each is ours and reads."""

    def __init__(self, gpus: int, repeats: int) -> None:
        self.repeats, self.slots = repeats, SLOTS
        self._folder = tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")
        address, there = str(Path(self._folder.name) / "s"), f"cuda:{gpus - 1}"
        self.peers = {kind: Peer(kind, SLOTS, there, address, STAGING, 1) for kind in ("paged", "contiguous")}
        self.engines = {kind: Engine(kind, SLOTS, "cuda:0", address, 0, 2) for kind in self.peers}
        self._tokens = 0
        self.hits: dict[str, Hit] = {}
        self.offered: dict[str, bytes] = {}
        chance = random.Random(3)
        self.sources = chance.sample(range(SLOTS), SLOTS)
        self.places = chance.sample(range(SLOTS), SLOTS)
        for name, kind, count, staged in (
            ("in_place", "paged", SLOTS, False),
            ("packed", "paged", STAGING, True),
            ("contiguous", "contiguous", SLOTS, False),
        ):
            self.hits[name] = self.hit(kind, count, staged)
        source, target = self.engines["contiguous"].contiguous(self.hits["contiguous"])
        self._source, self._target = source, target
        self._stream = torch.cuda.Stream()

    def new_tokens(self, blocks: int) -> bytes:
        """Tokens that nobody has used."""
        self._tokens += blocks * BLOCK
        return np.arange(self._tokens - blocks * BLOCK, self._tokens, dtype=np.int32).tobytes()

    def hit(self, kind: str, count: int, staged: bool) -> Hit:
        """`count` blocks of the peer's, in random slots or packed in a run."""
        tokens = self.offered[kind if kind == "contiguous" else "packed" if staged else "in_place"] = self.new_tokens(
            count
        )
        self.peers[kind].ask("publish", tokens, self.sources[:count], staged)
        return self.engines[kind].matched(tokens, count)

    def ceiling(self, nbytes: int) -> Handle:
        """Start one contiguous copy."""
        with torch.cuda.stream(self._stream):
            self._target[:nbytes].copy_(self._source[:nbytes], non_blocking=True)
            return Handle()

    def row(self, name: str, kind: str, hit: Hit, blocks: int, way: str | None, programs: int | None = None) -> Row:
        """Measure one fetch of the leading `blocks` of a hit."""
        engine = self.engines[kind]
        engine.force(way, programs)
        places = self.places[:blocks]
        nbytes = blocks * SLOT
        plain = kind == "paged" and hit.runs[0].checksums is None

        def fetch() -> Any:
            return engine.market.fetch(hit, places)

        self._poison(engine)
        assert fetch().wait() == blocks
        self._compare(engine, blocks)
        samples = {"ours": [], "ceiling": [], "call": [], "call_ceiling": []}
        for _ in range(5):
            samples["ours"] += sustained(fetch, self.repeats // 5)
            samples["ceiling"] += sustained(lambda: self.ceiling(nbytes), self.repeats // 5)
            samples["call"] += single(fetch, self.repeats // 5, spin=way == "pull")
            samples["call_ceiling"] += single(lambda: self.ceiling(nbytes), self.repeats // 5)
        p = {key: report.percentiles(times) for key, times in samples.items()}
        engine.force(None)
        return {
            "name": name, "bytes": nbytes, "blocks": blocks, "way": way or "chosen",
            "programs": programs or (LINK.enough if plain else None), "unit": "us",
            **p["ours"], "ceiling": p["ceiling"]["p50"], "ratio": round(p["ceiling"]["p50"] / p["ours"]["p50"], 4),
            "GBps": round(nbytes / p["ours"]["p50"] / 1e3, 1), "call_p50": p["call"]["p50"],
            "call_p90": p["call"]["p90"], "call_ceiling": p["call_ceiling"]["p50"],
            "call_ratio": round(p["call_ceiling"]["p50"] / p["call"]["p50"], 4),
        }  # fmt: skip

    def _poison(self, engine: Engine) -> None:
        for layer in engine.layers:
            layer.fill_(-21555)

    def _compare(self, engine: Engine, blocks: int) -> None:
        places, sources = (torch.tensor(ids[:blocks], device="cuda:0") for ids in (self.places, self.sources))
        for number, layer in enumerate(engine.layers):
            generator = torch.Generator("cuda:0").manual_seed(1000 + number)
            bits = torch.randint(-(2**15), 2**15, layer.shape, dtype=torch.int16, device="cuda:0", generator=generator)
            assert torch.equal(layer[places], bits[sources]), f"wrong bytes in layer {number}"

    def transfers(self) -> Iterator[Row]:
        """Every way over every size."""
        hits = self.hits
        for blocks in SIZES:
            yield self.row("packed", "paged", hits["packed"], blocks, None)
            yield self.row("packed_staged", "paged", hits["packed"], blocks, "staged")
            yield self.row("packed_pull", "paged", hits["packed"], blocks, "pull")
            yield self.row("contiguous", "contiguous", hits["contiguous"], blocks, None)
            yield self.row("contiguous_copy", "contiguous", hits["contiguous"], blocks, "copy")
            yield self.row("contiguous_pull", "contiguous", hits["contiguous"], blocks, "pull")
            yield self.row("in_place", "paged", hits["in_place"], blocks, None)
            for programs in (4, 8, 12, 16, 24, 132):
                yield self.row(f"pull_{programs}", "paged", hits["in_place"], blocks, "pull", programs)
        plain = dataclasses.replace(
            hits["packed"], runs=tuple(dataclasses.replace(run, checksums=None) for run in hits["packed"].runs)
        )
        for name, hit in (("checksum_on", hits["packed"]), ("checksum_off", plain)):
            for way in ("pull", "staged"):
                yield self.row(f"{name}_{way}", "paged", hit, 128, way)

    def latencies(self) -> Iterator[Row]:
        """One block, and what a fetch of 2,048 blocks costs its caller."""
        for name, kind in (("one_block", "paged"), ("one_block_contiguous", "contiguous")):
            market, hit = self.engines[kind].market, self.hits["in_place" if kind == "paged" else kind]
            times = single(lambda market=market, hit=hit: market.fetch(hit, self.places[:1]), 5 * self.repeats)
            ceiling = report.percentiles(single(lambda: self.ceiling(SLOT), self.repeats))["p50"]
            p = report.percentiles(times)
            yield {"name": name, "bytes": SLOT, "unit": "us", **p, "ceiling": ceiling, "ratio": ceiling / p["p50"]}
        for name, kind, hit in (
            ("cpu_2048", "paged", self.hits["in_place"]),
            ("cpu_2048_contiguous", "contiguous", self.hits["contiguous"]),
        ):
            market, cost = self.engines[kind].market, []
            for _ in range(self.repeats):
                start = time.thread_time()
                moved = market.fetch(hit, self.places)
                cost.append((time.thread_time() - start) * 1e6)
                moved.wait()
            yield {
                "name": name, "bytes": SLOTS * SLOT, "unit": "us", **report.percentiles(cost),
                "ceiling": None, "ratio": None,
            }  # fmt: skip

    def close(self) -> None:
        """End the processes."""
        for engine in self.engines.values():
            engine.close()
        for peer in self.peers.values():
            peer.close()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="write bench/results/MACHINE-transfer.json")
    parser.add_argument("--commit", help="what is measured, where the history did not come along with the sources")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--only", default="", help="parts to run, with commas: local,transfers,latencies,...")
    given = parser.parse_args()
    suite = Suite(torch.cuda.device_count(), given.repeats)
    parts = {
        "local": lambda: local_rows(given.repeats), "transfers": suite.transfers, "latencies": suite.latencies,
        "both_ways": lambda: both_ways(suite), "baselines": lambda: baselines(suite),
        "co_runners": lambda: co_runners(suite),
    }  # fmt: skip
    rows: list[Row] = []
    for name, part in parts.items():
        if not given.only or name in given.only.split(","):
            for row in part():
                print({key: value for key, value in row.items() if value is not None}, flush=True)
                rows.append(row)
    suite.close()
    if given.write:
        facts = report.facts([0])
        if given.commit:
            facts["commit"] = given.commit
        path = report.write(given.write, "transfer", rows, ["torch", "triton"], repeats=given.repeats, **facts)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
