"""Starts engine processes and talks to them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class EngineError(AssertionError):
    """An engine process died or hung; says what it printed last."""


class EngineProcess:
    """A running engine. Close it, or use it as a context manager."""

    def __init__(self, log: Path, options: dict[str, Any], nursery: Nursery, env: dict[str, str] | None = None) -> None:
        """Start the process; `wait` says when it is up. `options` are those of engine.py; `log` takes its stderr."""
        self.log = log
        self._line, self._process = nursery.start(log, options, env or {})
        self._rest = b""
        self.pid, self.vllm = 0, ""

    def wait(self, seconds: float = 600) -> EngineProcess:
        """Wait until the engine is up."""
        up = self.answer(seconds)
        self.pid, self.vllm = up["pid"], up["vllm"]
        return self

    def ask(self, do: str, seconds: float = 120, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its answer. Raises EngineError when the engine dies or takes too long."""
        self.tell(do, **arguments)
        return self.answer(seconds)

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command; `answer` returns its answer."""
        self._line.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def answer(self, seconds: float = 120) -> dict[str, Any]:
        """Return the next answer."""
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._line.settimeout(max(0.001, end - time.monotonic()))
            try:
                chunk = self._line.recv(1 << 20)
            except TimeoutError as error:
                raise EngineError(f"no answer in {seconds} s; it printed\n{self.tail()}") from error
            if not chunk:
                raise EngineError(f"the engine died; it printed\n{self.tail()}")
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def generate(self, prompts: list[list[int]], tokens: int = 1, **more: Any) -> dict[str, Any]:
        """Run prompts together."""
        return self.ask("generate", prompts=prompts, tokens=tokens, **more)

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the engine's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.pid and self._alive():
            os.kill(self.pid, signal.SIGKILL)
        while self._alive():
            time.sleep(0.01)

    def close(self) -> None:
        """End the process, politely first."""
        self._line.close()
        end = time.monotonic() + 20
        while self._alive() and time.monotonic() < end:
            time.sleep(0.02)
        self.kill()

    def _alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self.pid > 0 and Path(f"/proc/{self.pid}").exists()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Nursery:
    """Starts engine processes: forked from one that has imported vLLM, on GPUs each from scratch."""

    def __init__(self, folder: Path, python: str = sys.executable, *, fork: bool) -> None:
        self._folder, self._python = folder, python
        self._count = 0
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._environment.pop("TRITON_INTERPRET", None)
        self._parent = self._popen("nursery", folder / "nursery.log", {}, subprocess.PIPE) if fork else None

    def start(
        self, log: Path, options: dict[str, Any], env: dict[str, str]
    ) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
        """Return the line to a new engine, and its process when it is a child of ours."""
        if self._parent is None:
            ours, theirs = socket.socketpair()
            with theirs:
                return ours, self._popen(json.dumps(options), log, env, theirs)
        self._count += 1
        address = str(self._folder / f"line{self._count}")
        assert self._parent.stdin is not None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            listener.settimeout(600)
            order = {"options": options, "env": env, "log": str(log), "socket": address}
            self._parent.stdin.write(json.dumps(order).encode() + b"\n")
            self._parent.stdin.flush()
            return listener.accept()[0], None

    def _popen(self, argument: str, log: Path, env: dict[str, str], line: Any) -> subprocess.Popen[bytes]:
        with log.open("wb") as stderr:
            return subprocess.Popen(
                [self._python, str(HERE / "engine.py"), argument],
                stdin=line,
                stdout=stderr if line == subprocess.PIPE else line,
                stderr=stderr,
                env={**self._environment, **env},
                cwd=self._folder,
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        if self._parent is not None:
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            self._parent.wait(60)
