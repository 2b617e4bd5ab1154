"""Children that run tests: each in a session of its own, with a time limit and a bound on its memory.

``start`` forks a keeper, which forks the child that runs the tests. The keeper adopts the processes that the child
leaves behind (also services that became daemons), and kills them when the child has ended or its time is up.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


class Ended(NamedTuple):
    """How a child ended: its `result`, None if it was killed or its time was up (`hung`)."""

    result: dict[str, Any] | None
    hung: bool
    seconds: float
    output: str  # the end of what it printed


class Child:
    """A running child. `handle` becomes readable when it has ended. It owns a temporary folder."""

    def __init__(self, work: Callable[[Path], dict[str, Any]], seconds: float, memory: int) -> None:
        """Run `work` with a folder of its own, for at most `seconds`, with `memory` bytes more than this process has.

        What `work` returns goes through JSON.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="mut-"))
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            _keep(work, self.folder, seconds, memory)
        self.handle = os.pidfd_open(self._pid)

    def ended(self) -> Ended:
        """Wait for its end, and remove its folder; returns how it ended."""
        os.waitpid(self._pid, 0)
        return self._clean()

    def kill(self) -> None:
        """Kill the child and all processes that it started."""
        signal.pidfd_send_signal(self.handle, signal.SIGTERM)
        self.ended()

    def _clean(self) -> Ended:
        os.close(self.handle)
        kept = _read(self.folder / "kept") or {"hung": False, "seconds": 0.0}
        output = (self.folder / "output").read_text(errors="replace")[-4000:]
        ended = Ended(_read(self.folder / "result"), kept["hung"], kept["seconds"], output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended


def _read(path: Path) -> dict[str, Any] | None:
    try:
        read: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return read


def _keep(work: Callable[[Path], dict[str, Any]], folder: Path, seconds: float, memory: int) -> NoReturn:
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: _end_all() or os._exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _work(work, folder, memory)
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    hung = not poll.poll(1000 * seconds)
    _end_all()
    (folder / "kept").write_text(json.dumps({"hung": hung, "seconds": time.monotonic() - begun}))
    os._exit(0)


def _work(work: Callable[[Path], dict[str, Any]], folder: Path, memory: int) -> NoReturn:
    os.setpgid(0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with _Last():
        result = work(folder)
        (folder / "new").write_text(json.dumps(result))
        (folder / "new").rename(folder / "result")
    raise AssertionError("unreachable")


class _Last:
    """Ends this process at the end of the block, also after an exception: the parent's stack must not run here."""

    def __enter__(self) -> None:
        """Do nothing: the process ends in `__exit__`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_all() -> None:
    """Kill all children of this process; their children become its own, and are killed too."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        while True:
            for pid in listed.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
    except ChildProcessError:
        return
