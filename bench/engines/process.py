"""Starts engine processes and talks to them."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GPUS = torch.cuda.device_count()


class EngineError(AssertionError):
    """An engine process died or hung; the message has its last output."""


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process' environment for one that imports this checkout, with `more`, and without Triton's interpreter."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
    environment.pop("TRITON_INTERPRET", None)
    return environment


class EngineProcess:
    """A running engine. Close it, or use it as a context manager."""

    def __init__(
        self,
        log: Path,
        options: dict[str, Any],
        python: str = sys.executable,
        env: dict[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        """Start the process without waiting (see `wait`). `options` are those of engine.py; `log` gets its stderr.

        `within`: a command that runs the engine's command, for example in a container.
        """
        options = {"gpu": GPUS > 0, **options}
        self.log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*within, python, str(HERE / "engine.py"), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=child_environment(env or {}),
                cwd=log.parent,
            )
        self.pid = self._process.pid
        self.vllm = ""
        self._rest = b""
        self._poll = selectors.DefaultSelector()
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._poll.register(self._process.stdout, selectors.EVENT_READ)

    def wait(self, seconds: float = 1000) -> EngineProcess:
        """Wait until the engine is up. Raises EngineError as `answer` does."""
        self.vllm = self.answer(seconds)["vllm"]
        return self

    def ask(self, do: str, seconds: float = 120, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer. Raises EngineError when the engine dies or takes too long."""
        self.tell(do, **arguments)
        return self.answer(seconds)

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command; `answer` returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, seconds: float = 120) -> dict[str, Any]:
        """Return the next answer. Raises EngineError when the engine dies or takes longer than `seconds`."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not self._poll.select(max(0.0, end - time.monotonic())):
                raise EngineError(f"no answer in {seconds} s; it printed\n{self.tail()}")
            chunk = self._process.stdout.read()
            if chunk == b"":
                raise EngineError(f"the engine died ({self._process.wait()}); it printed\n{self.tail()}")
            self._rest += chunk or b""
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def generate(self, prompts: list[list[int]], tokens: int = 1, **more: Any) -> dict[str, Any]:
        """Run `Engine.generate` of engine.py in the process."""
        return self.ask("generate", prompts=prompts, tokens=tokens, **more)

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the engine's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait for its end."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process by closing its stdin; after 20 s kill it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()
        self._poll.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
