"""Start a second process for the doctor. It reads its task on stdin and sends one line of JSON on stdout."""

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
    """The first process' end: receives the message of the second process."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self._process, self._stderr = process, stderr

    def receive(self, kind: type[T]) -> T:
        """Wait for the message. Raises KVMarketError if the process dies first, or is silent for `PATIENCE` seconds."""
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
    """A context in which a module of kvmarket runs as a second process with `task`.

    At the end its stdin is closed; after ten seconds the process is killed.
    """
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(command(module), stdin=pipe, stdout=pipe, stderr=stderr, env=environment()) as process,
    ):
        stdin = process.stdin
        assert stdin is not None
        try:
            with suppress(BrokenPipeError):  # receive() raises the reason
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
    """The second process' end: reads the task from stdin, and sends the message to the original stdout."""

    def __init__(self) -> None:
        """Redirect stdout to stderr, so that what libraries print does not get between messages."""
        self._messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def task(self, kind: type[T]) -> T:
        """Read the task."""
        return msgspec.json.decode(sys.stdin.buffer.readline(), type=kind, dec_hook=decode_memory)

    def send(self, message: msgspec.Struct) -> None:
        """Send the message."""
        self._messages.write(msgspec.json.encode(message) + b"\n")

    def wait(self) -> None:
        """Wait until the first process closes our stdin: it needs this process no more."""
        sys.stdin.buffer.read()
