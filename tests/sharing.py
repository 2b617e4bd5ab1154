"""Processes that share named memory and are killed, with a folder of the test in place of /dev/shm."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmarket.processes import leftovers, marks, shared_file
from kvmarket.processes.shared_file import Process

BYTES = 5000
ELSEWHERE = 12345  # a PID namespace
unfinished: list = []


@contextmanager
def own_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use a new folder in /dev/shm, a tmpfs too, in place of /dev/shm itself."""
    folder = Path("/dev/shm") / f"test-{os.getpid()}"
    folder.mkdir()
    monkeypatch.setattr(marks, "FOLDER", folder)
    yield folder
    if folder in marks._marks:
        os.close(marks._marks.pop(folder))
    shutil.rmtree(folder)


def torch_file(number: int = 1, pid: int | None = None, nbytes: int = BYTES) -> Path:
    path = marks.FOLDER / f"torch_{pid or os.getpid()}_1_{number}"
    path.write_bytes(bytes(nbytes))
    return path


def share() -> None:
    """Share memory as over CUDA IPC: the file keeps its name."""
    leftovers.mark()
    marks.created(torch_file().name)


def allocate(number: int = 1, nbytes: int = BYTES, files: int = 1) -> None:
    """Begin to share memory as on a CPU, where a file has a name until its memory is ready; never finish."""
    begin_to_allocate()
    for other in range(files):
        torch_file(number + other, nbytes=nbytes)


def begin_to_allocate(nbytes: int | None = BYTES) -> None:
    unfinished.append(marks.creating(nbytes))
    unfinished[0].__enter__()


class Sharer:
    """A process that runs `steps`, functions of this module, and then sleeps until it is killed.

    `namespace` and `as_process` replace its PID namespace and its process number in what it tells others.
    """

    def __init__(self, *steps, namespace: int | None = None, as_process: int | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=self._run, args=(steps, namespace, as_process, theirs), daemon=True)
        self.process.start()
        assert self._pipe.poll(20), "it hangs"
        self.pid = self._pipe.recv()

    @staticmethod
    def _run(steps, namespace, as_process, pipe) -> None:
        if namespace is not None:
            shared_file.pid_namespace = lambda: namespace
        if as_process is not None:
            own = Process.current()
            Process.current = classmethod(lambda cls: Process(as_process, own.start, own.namespace))
        for step in steps:
            step()
        pipe.send(os.getpid())
        time.sleep(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
