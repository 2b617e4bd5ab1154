"""The shared part of the transfer benchmark: two pairs of engines, their hits, and the measurement of a fetch."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bench import report
from bench.micro.peer import BLOCK, SLOT, Engine, Peer
from bench.micro.timing import GPUS, Mark, handle, new_stream, single, sustained
from kvmarket import Hit
from kvmarket.kernels.shape import LINK

Row = dict[str, Any]
HERE, THERE = ("cuda:0", f"cuda:{GPUS - 1}") if GPUS else ("cpu", "cpu")


class Suite:
    """A pair of engines with paged slots, and one with contiguous slots: `engines` read here from `peers`."""

    def __init__(self, repeats: int, sizes: tuple[int, ...], slots: int, staging: int) -> None:
        """`sizes` in blocks, the largest first; `slots` of each cache, `staging` slots of each peer's staging pool."""
        self.repeats, self.sizes, self.slots = repeats, sizes, slots
        self.window = sizes[1]  # blocks of a fetch, for parts that measure one size
        self._folder = tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")
        address = str(Path(self._folder.name) / "s")
        self.peers = {kind: Peer(kind, slots, THERE, address, staging, 1) for kind in ("paged", "contiguous")}
        self.engines = {kind: Engine(kind, slots, HERE, address, 0, 2) for kind in self.peers}
        self._tokens = 0
        self.hits: dict[str, Hit] = {}
        self.offered: dict[str, bytes] = {}
        chance = random.Random(3)
        self.sources = chance.sample(range(slots), slots)
        self.places = chance.sample(range(slots), slots)
        for name, kind, count, staged in (
            ("in_place", "paged", slots, False),
            ("packed", "paged", staging, True),
            ("contiguous", "contiguous", slots, False),
        ):
            self.hits[name] = self.hit(kind, count, staged)
        source, target = self.engines["contiguous"].contiguous(self.hits["contiguous"])
        self._source, self._target = source, target
        self._stream = new_stream()

    def new_tokens(self, blocks: int) -> bytes:
        """The int32 bytes of tokens that no other call has returned."""
        self._tokens += blocks * BLOCK
        return np.arange(self._tokens - blocks * BLOCK, self._tokens, dtype=np.int32).tobytes()

    def hit(self, kind: str, count: int, staged: bool) -> Hit:
        """Have the peer publish `count` blocks, in random slots or staged; returns the hit once all are visible."""
        tokens = self.offered[kind if kind == "contiguous" else "packed" if staged else "in_place"] = self.new_tokens(
            count
        )
        self.peers[kind].ask("publish", tokens, self.sources[:count], staged)
        return self.engines[kind].matched(tokens, count)

    def ceiling(self, nbytes: int) -> Mark:
        """Start one contiguous copy of so many bytes from the peer's memory."""
        with torch.cuda.stream(self._stream):
            self._target[:nbytes].copy_(self._source[:nbytes], non_blocking=True)
            return handle()

    def row(self, name: str, kind: str, hit: Hit, blocks: int, way: str | None, programs: int | None = None) -> Row:
        """Measure fetches of the leading `blocks` of a hit, after a comparison of all bytes of one; returns the row."""
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
        places, sources = (torch.tensor(ids[:blocks], device=HERE) for ids in (self.places, self.sources))
        for number, layer in enumerate(engine.layers):
            generator = torch.Generator(HERE).manual_seed(1000 + number)
            bits = torch.randint(-(2**15), 2**15, layer.shape, dtype=torch.int16, device=HERE, generator=generator)
            assert torch.equal(layer[places], bits[sources]), f"wrong bytes in layer {number}"

    def unsummed(self, name: str) -> Hit:
        """The named hit without checksums, so that fetches do not check them."""
        runs = tuple(msgspec.structs.replace(run, checksums=None) for run in self.hits[name].runs)
        return msgspec.structs.replace(self.hits[name], runs=runs)

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the market and end the peers' processes."""
        for engine in self.engines.values():
            engine.close()
        for peer in self.peers.values():
            peer.close()
        self._folder.cleanup()
