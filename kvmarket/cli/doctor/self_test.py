"""Test whether another process can read our memory: a real second process maps and reads it, as a fetch does.

The doctor exports memory of every device. For every reading device it starts one second process (torch keeps one
mapping of a handle per process), which maps all the memory, compares the bytes, and says for each owner what went
wrong. ``python -m kvmarket.cli.doctor.self_test`` is that second process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from kvmarket.cli.doctor.finding import Finding
from kvmarket.cli.doctor.second_process import Line, second_process
from kvmarket.errors import KVMarketError
from kvmarket.transport import Memory, export, map_memory

BYTES = 1 << 20


class Task(msgspec.Struct, frozen=True):
    """Read `memories` on the device `reader`; their bytes have these SHA-256 `digests`."""

    owner: int  # PID
    reader: str
    memories: tuple[Memory, ...]
    digests: tuple[str, ...]


class Answer(msgspec.Struct, frozen=True):
    """The error with each memory, and why the owner's ``/proc/<pid>/fd`` cannot be read; an empty text is no error."""

    troubles: tuple[str, ...]
    descriptors: str


@dataclass(frozen=True, eq=False)
class _Exported:
    """Memory of one device, kept alive for its readers."""

    payload: torch.Tensor
    memory: Memory
    digest: str


def self_test(gpus: Sequence[torch.device]) -> Iterator[Finding]:
    """Test shared memory, every ordered pair of GPUs, and each GPU with itself. Takes about ten seconds per device."""
    for devices in ([torch.device("cpu")], gpus):
        exported: dict[torch.device, _Exported] = {}
        for owner in devices:
            try:
                payload = torch.randint(0, 256, (BYTES,), dtype=torch.uint8, device=owner)
                exported[owner] = _Exported(payload, export([payload.untyped_storage()]), _digest(payload))
            except (KVMarketError, RuntimeError) as error:
                trouble = f"{type(error).__name__}: {error}"
                yield Finding(f"{owner} exported", "bad", trouble, "mend this first; no peer can read this memory")
        for reader in devices:
            yield from _read_by(reader, exported)


def _read_by(reader: torch.device, exported: Mapping[torch.device, _Exported]) -> Iterator[Finding]:
    """Let one second process on `reader` read all exported memory."""
    memories, digests = tuple(e.memory for e in exported.values()), tuple(e.digest for e in exported.values())
    try:
        with second_process(
            "kvmarket.cli.doctor.self_test", Task(os.getpid(), str(reader), memories, digests)
        ) as process:
            answer = process.receive(Answer)
    except (KVMarketError, OSError) as error:
        answer = Answer(tuple(f"{type(error).__name__}: {error}" for _ in exported), "not looked at")
    for owner, trouble in zip(exported, answer.troubles, strict=True):
        what = f"{owner} read from a second process on {reader}"
        advice = "peers cannot read this memory: mend this, or keep engines that share off this pair" if trouble else ""
        yield Finding(what, "bad" if trouble else "ok", trouble or "equal bytes", advice)
    if reader.type == "cpu":
        yield _descriptors(answer.descriptors)


def _descriptors(trouble: str) -> Finding:
    """Whether the second process could read our descriptors: it maps generations through them, also with GPUs."""
    what = "descriptors of another process"
    if not trouble:
        return Finding(what, "ok", "readable")
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    scope = yama.read_text().strip() if yama.exists() else "absent"
    return Finding(
        what,
        "bad",
        f"{trouble} (kernel.yama.ptrace_scope: {scope})",
        "run all engines as one user, with the same capabilities, and /proc without hidepid",
    )


def answer(task: Task) -> Answer:
    """Run the second process: read all memories of the task."""
    reader = torch.device(task.reader)
    pairs = zip(task.memories, task.digests, strict=True)
    return Answer(tuple(_trouble(memory, reader, digest) for memory, digest in pairs), _unreadable(task.owner))


def _trouble(memory: Memory, reader: torch.device, digest: str) -> str:
    try:
        (segment,) = map_memory(memory, reader)
        return "" if _digest(segment[:BYTES]) == digest else "the bytes differ"
    except (KVMarketError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def _unreadable(pid: int) -> str:
    try:
        for _ in Path(f"/proc/{pid}/fd").iterdir():
            break
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _digest(payload: torch.Tensor) -> str:
    return hashlib.sha256(payload.cpu().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    line = Line()
    line.send(answer(line.task(Task)))
