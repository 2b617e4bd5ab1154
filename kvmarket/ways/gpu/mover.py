"""The mover of a GPU: launches the copies of a fetch on its own streams, each by the way chosen for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from triton.errors import TritonError
from triton.runtime import driver

from kvmarket.kernels.pull import pull_launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.transport.cuda_ipc import device_uuid
from kvmarket.ways.choice import Choice
from kvmarket.ways.copying import FAILURES, Copy, Int64s, Started
from kvmarket.ways.gpu import copy_engine
from kvmarket.ways.gpu.copy_way import CopyWay
from kvmarket.ways.gpu.launching import LaunchThread
from kvmarket.ways.gpu.pull_way import PullWay
from kvmarket.ways.gpu.staged_way import StagedWay
from kvmarket.ways.way import Job, Means, Way, Ways

STREAMS = 3  # the copy engine pauses between the ranges of one stream; ranges of the other streams fill the pauses
WAYS: list[type[Way]] = [PullWay, CopyWay, StagedWay]  # one line a way; the first must take every copy
T = TypeVar("T")


class _Thread(threading.local):
    """State per thread of this process."""

    ready = False  # whether the thread has a CUDA context


_THREAD = _Thread()


class GpuMover:
    """Copies into the slots of ``own``, on its own streams; each copy runs after the work on the current stream."""

    def __init__(self, own: SlotArray, programs: int | None = None, choice: Choice | None = None) -> None:
        """``programs`` bounds the programs of a kernel that run at a time.

        ``choice`` picks the way of every copy; None picks by the rates measured between the two GPUs, or built in.
        """
        self._device = own.device
        self._streams = tuple(torch.cuda.Stream(own.device) for _ in range(STREAMS))
        self.means = Means(own, self._streams, programs)
        idle = partial(copy_engine.idle, self._streams[0].cuda_stream)
        self.ways = Ways(self.means, WAYS, idle, device_uuid(own.device), choice)
        self._events: list[torch.cuda.Event] = []  # free to be recorded again
        self._closed = False
        self.prepare(own)
        self._thread = LaunchThread()

    def prepare(self, source: SlotArray, owner: str = "") -> None:
        """Build the table and compile the kernels for copies from ``source``: seconds, once per pair of layouts.

        ``owner``: the UUID of the GPU that holds ``source``. Raises RuntimeError where a kernel cannot be compiled.
        """
        self.ways.prepare(source, owner)

    def start(self, copies: Sequence[Copy]) -> Started:
        """Launch the copies in the order of the calls; a thread launches long ones. Raises RuntimeError."""
        if self._closed:
            raise RuntimeError("the market is closed")
        return self._here(lambda: self._start(copies))

    def _start(self, copies: Sequence[Copy]) -> Started:
        jobs = [self.ways.job(copy) for copy in copies]
        self._after_current_stream()  # now: work on that stream may still use memory that was freed and given to jobs
        done = self._event()

        def over() -> bool:
            return bool(self._here(done.query))

        def finish() -> list[Int64s | None]:
            self._here(done.synchronize)
            self._events.append(done)
            return [job.finish() for job in jobs]

        if self._thread.busy() or any(job.threaded for job in jobs):  # a busy thread takes all jobs, to keep the order
            launch = self._thread.submit(lambda: self._launch_there(jobs, done))

            def finish_there() -> list[Int64s | None]:
                launch.wait()
                return finish()

            return Started(lambda: launch.over() and (launch.failed() or over()), finish_there, (copies, jobs))
        self._launch(jobs, done)
        return Started(over, finish, (copies, jobs))

    def describe(self) -> str:
        """Name the ways for sources with the layout of our own slots, and the most SMs they take."""
        own = self.means.own
        most = self.means.programs or pull_launcher(own, own).enough(summed=False)
        return f"{self.ways.describe()} on at most {most} SMs"

    def close(self) -> None:
        """Wait for the copies under way; `start` raises RuntimeError from then on."""
        self._closed = True
        self._thread.close()
        for stream in self._streams:
            stream.synchronize()

    def _here(self, call: Callable[[], T]) -> T:
        """Make `call` with our device as the current device, in a thread that has its CUDA context.

        The driver refuses copies from a thread without a context. A new thread has none, and torch by itself would make
        one on the first GPU.
        """
        if _THREAD.ready and torch.cuda.current_device() == self._device.index:
            return call()
        with torch.cuda.device(self._device):
            self._streams[0].query()  # from now on the context follows the current device
            _THREAD.ready = True
            return call()

    def _event(self) -> torch.cuda.Event:
        try:
            return self._events.pop()  # atomic: no two fetches take the same
        except IndexError:
            return torch.cuda.Event()

    def _after_current_stream(self) -> None:
        if not copy_engine.idle(driver.active.get_current_stream(self._device.index)):
            self._streams[0].wait_stream(torch.cuda.current_stream(self._device))

    def _launch_there(self, jobs: Sequence[Job], done: torch.cuda.Event) -> None:
        self._here(lambda: self._launch(jobs, done))

    def _launch(self, jobs: Sequence[Job], done: torch.cuda.Event) -> None:
        """Launch the jobs. On failure wait until no launched copy can write any more, then raise RuntimeError."""
        try:
            for job in jobs:
                job.launch()
            done.record(self._streams[0])
        except (*FAILURES, TritonError) as error:
            for stream in self._streams:
                stream.synchronize()
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
