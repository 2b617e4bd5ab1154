"""One engine process of the demo: one JSON request a line on stdin, one JSON reply a line on stdout.

`kvmarket.cli.demo` starts it with a `Configuration` as JSON, in one argument. The process first writes a `Ready`, then
answers each `Request` with a `Reply`. It ends when stdin is closed.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec


class Configuration(msgspec.Struct, frozen=True):
    """The argument with which a demo engine is started."""

    device: str  # "cpu" or "cuda"
    address: str  # socket of the market
    blocks: int
    block_size: int
    threads: int  # of one process on a CPU


class Request(msgspec.Struct, frozen=True):
    """One prompt; `reuse=False` computes all of it."""

    tokens: list[int]
    new_tokens: int
    reuse: bool = True
    wait_for: int = 0  # tokens that the market must offer before the engine starts; gives up after ten seconds


class Reply(msgspec.Struct, frozen=True):
    """The answer to a `Request`, with the fields of the example's `Result`."""

    tokens: list[int]
    imported_tokens: int
    imported_bytes: int
    prefill_seconds: float
    fetch_seconds: float


class Ready(msgspec.Struct, frozen=True):
    """The engine has started; `ready` names the device it runs on."""

    ready: str


def run(configuration: Configuration) -> None:
    """Serve requests until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print goes to stderr, not between replies
    import torch

    from kvmarket.cli.mini_engine import LARGE, SMALL, MiniEngine

    torch.set_num_threads(configuration.threads)
    on_gpu = configuration.device == "cuda"
    engine = MiniEngine(
        configuration.device,
        blocks=configuration.blocks,
        block_size=configuration.block_size,
        address=configuration.address,
        shape=LARGE if on_gpu else SMALL,
    )
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {configuration.threads} threads"
    replies.write(msgspec.json.encode(Ready(name)) + b"\n")
    try:
        for line in sys.stdin.buffer:
            request = msgspec.json.decode(line, type=Request)
            deadline = time.monotonic() + 10
            while engine.market.match(request.tokens).tokens < request.wait_for and time.monotonic() < deadline:
                time.sleep(0.01)
            result = engine.generate(request.tokens, request.new_tokens, request.reuse)
            replies.write(msgspec.json.encode(result) + b"\n")
    finally:
        engine.close()


if __name__ == "__main__":
    run(msgspec.json.decode(sys.argv[1], type=Configuration))
