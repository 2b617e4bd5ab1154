"""A fake market that an engine can join only when the test allows it, and a real service of another version."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kvmarket import counters
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl, FakePool, back
from vllm_hook.metadata import RankMemory, StepDone
from vllm_hook.scheduler.side import SchedulerSide

NEW = ((0, "new"),)


def times(name: str) -> int:
    return sum(n for key, n in counters.snapshot().items() if key.split("{")[0] == name)


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


class LateMarket:
    """A market that an engine can join when `closed` is empty; until then an attempt raises an exception from it."""

    def __init__(self, *closed: Exception) -> None:
        self.closed = list(closed)
        self.attempts = 0
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[tuple[Any, FakeControl]] = []
        self.heard: list[str] = []
        self.joined: list[FakeControl] = []
        self.pool = FakePool()
        self.side = SchedulerSide(BLOCK, 1)
        self.side.bind_pool(self.pool)

    def connect(self, ranks: Any) -> FakeControl:
        self.attempts += 1
        assert self.gate.wait(5)
        if self.closed:
            raise self.closed[min(self.attempts, len(self.closed)) - 1]
        self.made.append((ranks[0].weights, FakeControl()))
        return self.made[-1][1]

    def start(self) -> str:
        memory = {0: RankMemory(None, None)}
        return self.side.join(memory, self.connect, self.joined.append, self.heard.append)  # type: ignore[arg-type]

    def open(self) -> FakeControl:
        """Let the engine join; the scheduler side has not taken the control half yet."""
        self.closed.clear()
        until(lambda: self.joined)
        return self.joined[-1]

    def back(self, step: int, weights: Any = ()) -> None:
        output = back(step)
        output.kv_connector_worker_meta = StepDone(step, weights=weights)
        self.side.returned(output)


OTHER_VERSION = """
import signal, sys
from kvmarket.registry.protocol import messages
messages.PROTOCOL = b"kvmarket/0\\n"
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.service import Service
service = Service(Address(sys.argv[1]), idle_exit=600.0)
signal.signal(signal.SIGTERM, lambda *_: service.stop())
print("up", flush=True)
service.run()
service.close()
"""


@contextmanager
def service_of_another_version(address: str) -> Iterator[None]:
    """Run a service with another protocol version in a process of its own, until the block ends."""
    with subprocess.Popen([sys.executable, "-c", OTHER_VERSION, address], stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None and service.stdout.readline() == b"up\n"
            yield
        finally:
            service.terminate()
            service.wait(30)
