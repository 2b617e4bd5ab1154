"""``kvmarket demo``: two engine processes; the second fetches the first one's prefix, and the time saved is shown.

With a lender, the first engine is killed before that, and the prefix comes from the lender.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from kvmarket.child import command, environment
from kvmarket.cli.demo_engine import Configuration, Ready, Reply, Request
from kvmarket.errors import KVMarketError, MisuseError
from kvmarket.registry.client.asking import ask_status
from kvmarket.registry.protocol.address import Address

BLOCK_SIZE = 16
QUESTION = 40  # tokens that the two prompts do not share
VOCABULARY = 8192
HOST_GB, GPU_GB = "0.5", "4"  # that the lender lends
LENT_SECONDS = 30.0

Message = TypeVar("Message", Ready, Reply)


class Engine:
    """One engine process. The demo must `close` it."""

    def __init__(self, name: str, configuration: Configuration, gpu: str | None) -> None:
        """Start the process. `gpu`: the only GPU that it sees. It shares our stderr."""
        self.name = name
        variables = {"OMP_WAIT_POLICY": "PASSIVE"} | environment()  # an idle engine leaves its cores to the other one
        if gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = gpu
        arguments = command("kvmarket.cli.demo_engine", msgspec.json.encode(configuration).decode())
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)

    def receive(self, kind: type[Message]) -> Message:
        """Wait for the next message of the process. Raises KVMarketError if it has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise KVMarketError(f"the {self.name} engine ended with exit code {code}; what it wrote above says why")
        return msgspec.json.decode(line, type=kind)

    def generate(self, tokens: list[int], new_tokens: int, reuse: bool = True, wait_for: int = 0) -> Reply:
        """Send one prompt and wait for the reply. The engine starts when the market offers `wait_for` tokens of it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(msgspec.json.encode(Request(tokens, new_tokens, reuse, wait_for)) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # receive() raises the reason
        return self.receive(Reply)

    def close(self) -> None:
        """End the process, by force after ten seconds."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Lender:
    """A ``kvmarket lend`` process. The demo must `close` it."""

    def __init__(self, address: str, gpu: str | None) -> None:
        """Start the process, which lends memory of the GPU `gpu`, or of the host for None. It shares our stderr."""
        self._place = Address(address)
        memory = ("--host-gb", HOST_GB) if gpu is None else ("--gpu", "0", "--gb", GPU_GB)
        visible = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        self.process = subprocess.Popen(
            command("kvmarket.cli", "lend", "--address", address, *memory), env=environment() | visible
        )

    def wait_for(self, blocks: int) -> None:
        """Wait until the lender offers so many blocks. Raises KVMarketError if that takes longer than 30 s."""
        end = time.monotonic() + LENT_SECONDS
        while sum(member.offers for member in ask_status(self._place).members if member.lends) < blocks:
            if time.monotonic() > end or self.process.poll() is not None:
                raise KVMarketError("the lender does not have the blocks; what it wrote above says why")
            time.sleep(0.05)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def gpus_for_two(device: str) -> tuple[str | None, str | None]:
    """The GPU of each of the two engines, as a value for CUDA_VISIBLE_DEVICES; both None for the CPU.

    Raises MisuseError for an unknown device, or for cuda without a GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise MisuseError(f"there is no device {device!r}; give auto, cpu or cuda")
    count = torch.cuda.device_count() if device != "cpu" else 0
    if not count:
        if device == "cuda":
            raise MisuseError("torch sees no GPU; look at nvidia-smi and at CUDA_VISIBLE_DEVICES, or give --device cpu")
        return None, None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [part.strip() for part in visible.split(",") if part.strip()] or [str(i) for i in range(count)]
    return ids[0], ids[1 % count]


def demo(
    device: str = "auto",
    prompt_tokens: int = 0,
    new_tokens: int = 32,
    console: Console | None = None,
    *,
    lend: bool = False,
) -> int:
    """Run the demo and print a table. Returns the exit status: 0 if blocks were imported and outputs are identical.

    `device`: auto, cpu or cuda; with two or more GPUs each engine has its own. `prompt_tokens`: 0 means 2,000 on a CPU
    and 8,000 on a GPU. `lend`: with a lender, on the second GPU if there is one. Takes about twenty seconds. Raises
    MisuseError without such a device, or for a prompt that is too short; KVMarketError if an engine dies.
    """
    console = console or Console()
    first_gpu, second_gpu = gpus_for_two(device)
    on_gpu = first_gpu is not None
    length = prompt_tokens or (8000 if on_gpu else 2000)
    if length < QUESTION + 2 * BLOCK_SIZE:
        raise MisuseError(f"a prompt of {length} tokens shares no block; give at least {QUESTION + 2 * BLOCK_SIZE}")
    with tempfile.TemporaryDirectory(prefix="kvmarket-demo-", ignore_cleanup_errors=True) as directory:
        configuration = Configuration(
            device="cuda" if on_gpu else "cpu",
            address=str(Path(directory) / "market"),
            blocks=4 * -(-(length + new_tokens) // BLOCK_SIZE),
            block_size=BLOCK_SIZE,
            threads=len(os.sched_getaffinity(0)),
        )
        engines: list[Engine] = []
        lender = Lender(configuration.address, second_gpu) if lend else None
        try:
            for name, gpu in (("first", first_gpu), ("second", second_gpu)):
                engines.append(Engine(name, configuration, gpu))
            return _compare(engines[0], engines[1], lender, length, new_tokens, console)
        finally:
            for process in (*engines, lender):
                if process is not None:
                    process.close()


def _compare(
    first: Engine, second: Engine, lender: Lender | None, length: int, new_tokens: int, console: Console
) -> int:
    """Run the same prompt on both engines: the first computes all of it, the second imports its prefix."""
    console.print(f"first engine: {first.receive(Ready).ready}; second engine: {second.receive(Ready).ready}")
    numbers = random.Random(20)

    def text(count: int) -> list[int]:
        return [numbers.randrange(VOCABULARY) for _ in range(count)]

    warmup = text(length)  # first uses take longer: kernels, allocators, mappings
    first.generate(warmup, 1)
    second.generate(warmup, 1, wait_for=length - BLOCK_SIZE)

    shared = text(length - QUESTION)
    first.generate(shared + text(QUESTION), 1)
    prompt = shared + text(QUESTION)
    title, computes = "one prompt, two engine processes", first
    if lender is not None:
        title, computes = "one prefix, whose engine was killed; a lender has its blocks", second
        lender.wait_for(2 * (length // BLOCK_SIZE))  # those of the warm-up, too
        first.process.kill()
        first.process.wait()
    after = second.generate(prompt, new_tokens, wait_for=(length - QUESTION) // BLOCK_SIZE * BLOCK_SIZE)
    before = computes.generate(prompt, new_tokens, reuse=False)  # last: nobody must import what it computes

    table = Table(title=title, show_header=False)
    for label, value in (
        ("prompt tokens", f"{length:,}"),
        ("tokens imported", f"{after.imported_tokens:,}"),
        ("bytes imported", f"{after.imported_bytes:,}"),
        ("prefill without import", f"{before.prefill_seconds * 1e3:,.1f} ms"),
        ("prefill with import", f"{after.prefill_seconds * 1e3:,.1f} ms"),
        ("  of which fetching", f"{after.fetch_seconds * 1e3:,.1f} ms"),
        ("link rate", f"{after.imported_bytes / after.fetch_seconds / 1e9 if after.imported_bytes else 0:,.2f} GB/s"),
    ):
        table.add_row(label, value)
    console.print(table)
    if not after.imported_tokens:
        console.print("NOTHING WAS IMPORTED: what the engines wrote above says why")
        return 1
    if before.tokens != after.tokens:
        console.print(f"OUTPUTS DIFFER: {before.tokens} without import, {after.tokens} with it")
        return 1
    console.print(f"outputs identical ({new_tokens} tokens)")
    return 0
