"""An engine as it is in a container of its own: other PID, IPC and mount namespaces, no shared /dev/shm.

Nothing is shared with the test but the directory of the market.
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
AS_USER = ["--user", "--map-root-user"]  # where only root makes the others
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
    """The command that runs another one in a container, None where this user may make none.

    In containers of another `number` it has another process number.
    """
    command = _unshare()
    return command and [*command, str(number)]


_numbers = itertools.count()


class Container:
    """A `ModelEngine` in a container; its public methods by name."""

    def __init__(self, address: str, **options: Any) -> None:
        """Start it, and wait until it has joined."""
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
        """What the method of the engine returns, or evaluates to where it is a path of attributes."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._hear()

    def kill(self) -> None:
        """End all of the container at once, as ``kill -9``."""
        self._process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Have it leave, where it lives."""
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
    """Run the engine, as its standard input says, until that ends."""
    from kvmarket import counters
    from kvmarket.processes.shared_file import pid_namespace
    from tests.model_engine import ModelEngine
    from tests.scarcity import descriptors

    engine = ModelEngine(address, **json.loads(options))
    calls = {
        "publish": engine.publish,
        "take": engine.take,
        "blocks": lambda tokens: engine.market.match(tokens).blocks,
        "mapped": lambda: len(engine.market._data._mapped),
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
