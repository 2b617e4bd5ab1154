"""Processes that do nothing until they are killed, and the threads that watch them."""

from __future__ import annotations

import subprocess
import sys
import threading

from kvmarket.processes.shared_file import Process, pid_namespace, start_time


class Sleeper:
    """A process that does nothing for ten minutes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.known = Process(self._process.pid, start_time(self._process.pid), pid_namespace())

    def kill(self, reap: bool = True) -> None:
        self._process.kill()
        if reap:
            self._process.wait()


def watching() -> list[str]:
    """The names of this process's threads that watch other processes."""
    return [thread.name for thread in threading.enumerate() if thread.name == "kvmarket-peers"]
