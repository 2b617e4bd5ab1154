"""A second process of the doctor's own, which sends one message on stdout, a line of JSON."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TypeVar

import msgspec

from kvmarket.child import command, environment
from kvmarket.errors import KVMarketError
from kvmarket.transport import decode_memory

PATIENCE = 120.0  # seconds; importing torch and starting CUDA on a busy machine can take half a minute
T = TypeVar("T")


class SecondProcess:
    """The process, as the first one sees it."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self._process, self._stderr = process, stderr

    def receive(self, kind: type[T]) -> T:
        """Its message. Raises KVMarketError when it dies first, or says nothing for two minutes."""
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], PATIENCE)[0]:
            raise KVMarketError(f"the second process was silent for {PATIENCE:.0f} s; look at nvidia-smi and dmesg")
        line = stdout.readline()
        if not line:
            raise KVMarketError(f"the second process ended with exit code {self._process.wait()}: {self._last_words()}")
        return msgspec.json.decode(line, type=kind, dec_hook=decode_memory)

    def _last_words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2] or "it wrote no reason"


@contextmanager
def second_process(module: str, task: msgspec.Struct) -> Iterator[SecondProcess]:
    """A module of kvmarket with its task, while it is needed; then its stdin ends, and it has ten seconds to go."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command(module), stdin=pipe, stdout=pipe, stderr=stderr, env=environment()) as process,
    ):
        stdin = process.stdin
        assert stdin is not None
        try:
            with suppress(BrokenPipeError):  # receive() says what happened
                stdin.write(msgspec.json.encode(task) + b"\n")
                stdin.flush()
            yield SecondProcess(process, stderr)
        finally:
            with suppress(BrokenPipeError):
                stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


class Line:
    """The second process' end: its task comes from stdin, its one message goes to what was stdout when it started."""

    def __init__(self) -> None:
        """From now on, whatever a library prints goes to stderr, not between messages."""
        self._messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def task(self, kind: type[T]) -> T:
        """What is to be done."""
        return msgspec.json.decode(sys.stdin.buffer.readline(), type=kind, dec_hook=decode_memory)

    def send(self, message: msgspec.Struct) -> None:
        """Answer."""
        self._messages.write(msgspec.json.encode(message) + b"\n")

    def wait(self) -> None:
        """Wait until the first process has no more use for this one."""
        sys.stdin.buffer.read()
