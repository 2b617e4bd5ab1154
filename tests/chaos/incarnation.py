"""One incarnation of an engine as the driver sees it: a process, its progress, and its log."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from tests.chaos.crowd import lose_messages
from tests.chaos.faults import engine_of
from tests.chaos.lender import ChaosLender
from tests.chaos.owner import Life
from tests.chaos.tally import Tally

PRELOAD = ["tests.chaos.incarnation", "kvmarket.market.facade"]
START_SECONDS = 60.0  # a first start may compile kernels and start the service
TRACEBACK = "Traceback (most recent call last)"


def live(life: Life) -> None:
    """Run the engine in this process. Errors go to its log; SIGUSR1 writes the stacks of all threads there."""
    log = os.open(Path(life.home) / f"{life.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ.pop("TRITON_INTERPRET", None)  # the torch reference is a hundred times as fast
    torch.set_num_threads(1)
    if life.loss:
        lose_messages(life.loss, life.seed)
    (ChaosLender(life) if life.lends else engine_of(life)).run()


class Incarnation:
    """A process that runs the engine of `life`. It starts at once, from a fork server without CUDA."""

    def __init__(self, life: Life, *, kept: bool) -> None:
        """`kept`: it is never killed, so that what it holds can be compared over the run."""
        self.life, self.kept = life, kept
        self.tally = Tally(Path(life.home) / f"{life.name}.tally")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD if life.device == "cpu" else [*PRELOAD, "triton"])
        self.process = context.Process(target=live, args=(life,))
        self.process.start()
        self.pid = self.process.pid or 0
        self.stopped = self.killed = False
        self._steps, self._moved = -1, time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the process runs, or is stopped."""
        return self.process.exitcode is None

    def hangs(self, seconds: float) -> bool:
        """Whether it has finished no step for so long, time while stopped left out; its start may take longer."""
        if self.stopped or self._steps != self.tally["steps"]:
            self._steps, self._moved = self.tally["steps"], time.monotonic()
        return time.monotonic() - self._moved > (seconds if self._steps else max(seconds, START_SECONDS))

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        self.killed = True
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """Stop the process (SIGSTOP)."""
        self.stopped = True
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the process (SIGCONT)."""
        self.stopped = False
        self._steps, self._moved = -1, time.monotonic()
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def explain(self) -> None:
        """Have the process write the stacks of its threads to its log."""
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.5)

    def log(self) -> str:
        """The text that the process has written to stderr."""
        path = Path(self.life.home) / f"{self.life.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def trouble(self) -> str:
        """What went wrong with the process, with its log; empty if nothing did."""
        code, log = self.process.exitcode, self.log()
        if TRACEBACK in log or "Fatal Python error" in log:
            what = "an exception"
        elif code not in (None, 0) and not self.killed:
            what = f"exit code {code}"
        else:
            return ""
        return f"{what} in {self.life}:\n{log}"

    def counters(self) -> Counter[str]:
        """The counters of kvmarket in the process, half a second old at most; numbers in reasons are left out."""
        path, found = Path(self.life.home) / f"{self.life.name}.counters", Counter()
        for name, count in json.loads(path.read_text()).items() if path.exists() else ():
            found[re.sub(r"\d+", "#", name)] += count
        return found

    def forget(self) -> None:
        """Remove the files and the handle of the process, which has died."""
        for ending in ("tally", "log", "counters", "fresh"):
            (Path(self.life.home) / f"{self.life.name}.{ending}").unlink(missing_ok=True)
        self.process.close()
