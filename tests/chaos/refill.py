"""``python -m tests.chaos.refill``: kills an engine that fills most of a GPU, and starts it again at once.

A peer on the same GPU keeps the engine's memory mapped; unless that mapping ends with the engine, the next engine finds
no memory. Each time blocks at both ends of the cache are fetched and compared: that tests offsets of some 100 GB, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import kvmarket
from tests.model_engine import prompt, until

BLOCK, SLOT = 16, 2 << 20
FACTS = {"model": "one large tensor", "dtype": "int8"}


def engine(address: str, nbytes: int) -> tuple[torch.Tensor, kvmarket.market.facade.Market]:
    """Make a cache of so many bytes in one tensor, and join the market."""
    layer = torch.empty((nbytes // SLOT, SLOT), dtype=torch.int8, device="cuda:0")
    cache = kvmarket.PagedCache([layer], block_size=BLOCK)
    return layer, kvmarket.connect(cache, kvmarket.Fingerprint.of(**FACTS), address=address)


def bits(seed: int) -> torch.Tensor:
    """The content of a block."""
    return torch.randint(-128, 128, (SLOT,), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def serve(pipe: Any, address: str, nbytes: int, seed: int) -> None:
    """Offer one block at each end of the cache, then wait to be killed."""
    layer, market = engine(address, nbytes)
    slots = [0, len(layer) - 1]
    for number, slot in enumerate(slots):
        layer[slot] = bits(seed + number).to("cuda:0")
    market.publish(prompt(2 * BLOCK, seed), slots)
    pipe.send(os.getpid())
    time.sleep(600)


def cycle(address: str, layer: torch.Tensor, market: Any, nbytes: int, seed: int) -> float:
    """Start an engine, fetch from it, and kill it; returns the seconds of its start."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, address, nbytes, seed))
    start = time.monotonic()
    process.start()
    theirs.close()
    mine.recv()  # EOFError: it did not start
    took = time.monotonic() - start
    tokens = prompt(2 * BLOCK, seed)
    until(lambda: market.match(tokens).blocks == 2)
    layer[:2] = 0
    assert market.fetch(market.match(tokens), [0, 1]).wait() == 2
    for number in range(2):
        assert torch.equal(layer[number].cpu(), bits(seed + number)), "wrong bytes"
    process.kill()
    process.join()
    return took


def refill(times: int, share: float) -> list[float]:
    """Run `times` cycles; returns the seconds of each start. Raises EOFError if a start failed."""
    with TemporaryDirectory(prefix="kvm-", dir="/tmp") as folder:
        address = str(Path(folder) / "s")
        layer, market = engine(address, 64 * SLOT)
        nbytes = int(share * torch.cuda.get_device_properties(0).total_memory)
        took = [cycle(address, layer, market, nbytes, 2 * number) for number in range(times)]
        market.close()
    return took


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--share", type=float, default=0.9, help="of the GPU's memory")
    options = parser.parse_args()
    took = refill(options.times, options.share)
    print(f"{len(took)} of {options.times} started, {min(took):.1f} to {max(took):.1f} s each")


if __name__ == "__main__":
    main()
