"""An engine in a container of its own: its own PID, IPC and mount namespaces, and its own /dev/shm.

It shares the directory of the market with the test, and nothing else.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

APART = ["unshare", "--pid", "--fork", "--kill-child", "--ipc", "--mount", "--mount-proc"]
AS_USER = ["--user", "--map-root-user"]  # where only root may make the other namespaces
ROOM = 'mount -t tmpfs -o size=64m none /dev/shm && for i in $(seq "$1"); do /bin/true; done && shift && "$@"'


@functools.cache
def _unshare() -> list[str] | None:
    if shutil.which("unshare"):
        for more in ([], AS_USER):
            command = [*APART, *more, "sh", "-c", ROOM, "sh"]
            if subprocess.run([*command, "0", "true"], capture_output=True, check=False).returncode == 0:
                return command
    return None


def apart(number: int = 0) -> list[str] | None:
    """A command that runs the command after it in a container; None if this user may make no container.

    The process number of the inner command depends on `number`.
    """
    command = _unshare()
    return command and [*command, str(number)]


_numbers = itertools.count()


class Container:
    """A `ModelEngine` in a container; `ask` calls its methods by name."""

    def __init__(self, address: str, **options: Any) -> None:
        """Start the container, and wait until its engine has joined the market."""
        root = Path(__file__).parents[1]
        command = [
            *(apart(next(_numbers)) or ()),
            sys.executable,
            "-m",
            "tests.container",
            address,
            json.dumps(options),
        ]
        paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, env=env)
        self.namespace = self._hear()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call one of the methods that `main` lists, in the container; returns its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._hear()

    def kill(self) -> None:
        """Kill all processes of the container with SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Have the engine leave, if it still runs, and wait for the end of the container."""
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            end.close()
        self._process.wait(30)

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the engine in the container has ended"
        return json.loads(line)


def main(address: str, options: str) -> None:
    """Run an engine that obeys the lines of its standard input until that ends."""
    from kvmarket import counters
    from kvmarket.processes.shared_file import pid_namespace
    from tests.model_engine import ModelEngine
    from tests.scarcity import descriptors

    engine = ModelEngine(address, **json.loads(options))
    calls = {
        "publish": engine.publish,
        "take": engine.take,
        "blocks": lambda tokens: engine.market.match(tokens).blocks,
        "mapped": lambda: len(engine.market._data.mappings._mapped),
        "descriptors": descriptors,
        "counters": counters.snapshot,
    }
    print(json.dumps(pid_namespace()), flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(calls[method](*arguments)), flush=True)
    engine.market.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
