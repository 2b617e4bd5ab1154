"""``kvmarket doctor``: what this machine can share, what it cannot, and what to do about it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from kvmarket.errors import KVMarketError
from kvmarket.pool import Generations
from kvmarket.registry.address import Address
from kvmarket.transport import Memory, export, map_memory

_LEVELS = {"ok": "green", "note": "yellow", "bad": "red"}
_CHILD = "import sys; from kvmarket.cli.doctor import read_back; read_back(sys.stdin.buffer.read())"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; `advice` is empty when nothing needs doing."""

    what: str
    level: str  # "ok", "note" or "bad"
    found: str
    advice: str = ""


def doctor(*, as_json: bool) -> int:
    """Look at everything and print it; 0 unless something is bad."""
    findings = [*_versions(), *_platform(), *_market(), *_gpus(), *_sharing()]
    console = Console(soft_wrap=as_json)
    if as_json:
        console.print_json(msgspec.json.encode(findings).decode())
    else:
        table = Table("what", "found", "what to do")
        for finding in findings:
            table.add_row(finding.what, f"[{_LEVELS[finding.level]}]{finding.found}[/]", finding.advice)
        console.print(table)
    return int(any(finding.level == "bad" for finding in findings))


def _versions() -> Iterator[Finding]:
    for package in ("kvmarket", "torch", "triton", "pyzmq", "msgspec", "vllm"):
        try:
            yield Finding(package, "ok", version(package))
        except PackageNotFoundError:
            yield Finding(
                package,
                "note",
                "not installed",
                "only needed for the vLLM hook" if package == "vllm" else f"pip install {package}",
            )


def _platform() -> Iterator[Finding]:
    try:
        Generations(1).close()
        yield Finding("generations", "ok", platform.machine())
    except KVMarketError as error:
        yield Finding("generations", "bad", str(error), "run on x86-64 Linux with memory to spare")
    room = os.statvfs("/dev/shm")
    free = room.f_bavail * room.f_frsize
    advice = "" if free > 1 << 30 else "CPU caches live there: mount -o remount,size=..., or --shm-size for a container"
    yield Finding("/dev/shm", "note" if advice else "ok", f"{free / 1e9:.1f} GB free", advice)


def _market() -> Iterator[Finding]:
    try:
        place = Address()
        yield Finding("market", "ok", f"{place}, {'served' if place.service_lives() else 'no service yet'}")
    except KVMarketError as error:
        yield Finding("market", "bad", type(error).__name__, str(error))


def _gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count()
    if not count:
        yield Finding(
            "GPUs", "note", "none: link rates and peer access cannot be looked at", "engines share through /dev/shm"
        )
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            f"GPU {index}",
            "ok",
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, compute {properties.major}.{properties.minor}",
        )
    for a in range(count):
        for b in range(count):
            if a != b and not torch.cuda.can_device_access_peer(a, b):
                yield Finding(
                    f"GPU {a} reads GPU {b}",
                    "bad",
                    "no peer access",
                    "see nvidia-smi topo -p2p r; keep engines that share on GPUs with it",
                )


def _sharing() -> Iterator[Finding]:
    """Export memory of every device and read it from a second process: the whole way that a fetch goes."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())] or [torch.device("cpu")]
    for device in devices:
        for reader in devices:
            yield _self_test(f"{device} read from a second process on {reader}", partial(_share, device, reader))


def _self_test(what: str, test: Callable[[], str]) -> Finding:
    try:
        trouble = test()
    except KVMarketError as error:
        return Finding(what, "bad", type(error).__name__, str(error))
    return (
        Finding(what, "bad", trouble, "see the errors above; peers cannot read this memory")
        if trouble
        else Finding(what, "ok", "equal bytes")
    )


def _share(device: torch.device, reader: torch.device) -> str:
    payload = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device=device)
    memory = export([payload.untyped_storage()])
    task = msgspec.msgpack.encode((memory, str(reader), payload.cpu().numpy().tobytes()))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=task,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    return done.stderr.decode(errors="replace").strip().rpartition("\n")[2] if done.returncode else ""


def read_back(task: bytes) -> None:
    """The second process of the self-test: map the memory and compare its bytes.

    Exits 1 with a reason when they differ.
    """
    memory, reader, expected = msgspec.msgpack.decode(task, type=tuple[Memory, str, bytes])
    (segment,) = map_memory(memory, torch.device(reader))
    if segment[: len(expected)].cpu().numpy().tobytes() != expected:
        sys.exit("the bytes differ")
