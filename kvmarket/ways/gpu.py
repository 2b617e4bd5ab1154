"""The ways of a GPU: which one a copy takes is decided here, and it is launched on streams of our own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from triton.errors import TritonError
from triton.runtime import driver

from kvmarket import counters
from kvmarket.kernels import can_sum
from kvmarket.kernels.addresses.tables import Table, table_of
from kvmarket.kernels.pull import pull_launcher
from kvmarket.kernels.tile import PER_BLOCK, PER_UNIT, Launcher
from kvmarket.layout.paged import SlotArray
from kvmarket.transport.cuda_ipc import device_uuid
from kvmarket.ways import copy_engine
from kvmarket.ways.buffers import Buffers
from kvmarket.ways.choice import Choice, load
from kvmarket.ways.copy_way import CopyJob
from kvmarket.ways.copying import FAILURES, Copy, Int64s, Started
from kvmarket.ways.launching import LaunchThread
from kvmarket.ways.pull_way import PullJob
from kvmarket.ways.staged_way import Ring, StagedJob

RING_SECONDS = 10.0  # until one is tried again, for which there was no memory
STREAMS = 3  # the gaps between the copy engine's ranges on one stream are filled by the others
Job = PullJob | CopyJob | StagedJob
T = TypeVar("T")


class _Thread(threading.local):
    """What a thread of the process has done already."""

    ready = False  # whether it has had the context of a device


_THREAD = _Thread()


class Link(NamedTuple):
    """What is the same in every copy from one source."""

    table: Table
    run: Launcher
    summable: bool
    choice: Choice


class GpuMover:
    """Copies into the slots of ``own``, on streams of its own; each copy runs after what the current stream holds."""

    def __init__(self, own: SlotArray, programs: int | None = None, choice: Choice | None = None) -> None:
        """``programs`` bounds the programs of a kernel that run at a time.

        ``choice`` picks the way of every copy; None for what was measured between the two GPUs, or is built in.
        """
        self._own, self._device = own, own.device
        self.programs, self.choice = programs, choice
        self._links: WeakKeyDictionary[SlotArray, Link] = WeakKeyDictionary()
        self._streams = [torch.cuda.Stream(own.device) for _ in range(STREAMS)]
        self._ring: Ring | None = None
        self._buffers = Buffers(own.device)
        self._events: list[torch.cuda.Event] = []  # free to be recorded again
        self._ring_at = 0.0  # the moment from which it may be allocated
        self._closed = False
        self.prepare(own)
        self._thread = LaunchThread()

    def prepare(self, source: SlotArray, owner: str = "") -> Link:
        """Build the table and compile the kernels for copies from ``source``: seconds, once per pair of layouts.

        ``owner``: the UUID of the GPU that it lies on. Raises RuntimeError where a kernel cannot be compiled.
        """
        run, summable = pull_launcher(source, self._own), can_sum(source, self._own)
        link = Link(table_of(source, self._own), run, summable, load(device_uuid(self._device), owner))
        none = torch.empty(0, dtype=torch.int64, device=self._device)
        stream = self._streams[0].cuda_stream
        try:
            with torch.cuda.device(self._device):
                run(none, none, 0, 1, None, stream)
                for kind in (PER_BLOCK, PER_UNIT) if summable else ():
                    run(none, none, 0, 1, none, stream, kind)
        except TritonError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        self._links[source] = link
        return link

    def start(self, copies: Sequence[Copy]) -> Started:
        """Launch the copies; long ones are launched by a thread, in the order of the calls. Raises RuntimeError."""
        if self._closed:
            raise RuntimeError("the market is closed")
        return self._here(lambda: self._start(copies))

    def _start(self, copies: Sequence[Copy]) -> Started:
        jobs = [self._job(copy) for copy in copies]
        self._after_current_stream()  # now: what was just allocated may have been freed by work that it still holds
        done = self._event()

        def over() -> bool:
            return bool(self._here(done.query))

        def finish() -> list[Int64s | None]:
            self._here(done.synchronize)
            self._events.append(done)
            return [job.finish() for job in jobs]

        if self._thread.busy() or any(job.threaded for job in jobs):  # what follows a job of the thread stays behind it
            launch = self._thread.submit(lambda: self._launch_there(jobs, done))

            def finish_there() -> list[Int64s | None]:
                launch.wait()
                return finish()

            return Started(lambda: launch.over() and (launch.failed() or over()), finish_there, (copies, jobs))
        self._launch(jobs, done)
        return Started(over, finish, (copies, jobs))

    def describe(self) -> str:
        """The ways for sources like our own slots."""
        link = self._links[self._own]
        flat = link.table.count == 1 and copy_engine.takes_batches()
        ways = "pull or copy (no SM)" if flat else "pull"
        return f"{ways} on at most {self.programs or link.run.enough(summed=False)} SMs"

    def close(self) -> None:
        """Wait for the copies under way."""
        self._closed = True
        self._thread.close()
        for stream in self._streams:
            stream.synchronize()

    def _here(self, call: Callable[[], T]) -> T:
        """Call with our device as the current one, and with its context, which a new thread does not have.

        The driver takes copies from a thread with a context only; torch alone would make one on the first GPU.
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

    def _job(self, copy: Copy) -> Job:
        own, link = self._own, self._links.get(copy.source) or self.prepare(copy.source)
        flat, packed = link.table.count == 1, copy.source.layout.packed
        if copy.summed and not link.summable:
            copy = copy._replace(summed=False)
        way = "pull"
        if (flat or packed) and copy_engine.takes_batches():
            nbytes = len(copy.slots) * own.layout.slot_bytes
            flat = flat and not copy.summed  # the copy engine sums nothing
            choice, length = self.choice or link.choice, link.table.length
            busy = not copy_engine.idle(self._streams[0].cuda_stream)
            way = choice.way(nbytes, length, contiguous=flat, packed=packed and self._has_ring(), busy=busy)
        if way == "copy":
            return CopyJob(copy, own, self._streams)
        if way == "staged" and (ring := self._ring or self._new_ring()):
            return StagedJob(copy, own, self._streams, ring, self.programs)
        return PullJob(copy, own, link.run, self._streams[0], self.programs, self._buffers)

    def _has_ring(self) -> bool:
        """Whether there is a ring, or one may be allocated."""
        return self._ring is not None or time.monotonic() >= self._ring_at

    def _new_ring(self) -> Ring | None:
        """The ring, allocated now.

        None, counted, where there is no memory for it: then packed slots are pulled, for `RING_SECONDS`.
        """
        try:
            self._ring = Ring(self._own, self._streams[1])
        except RuntimeError as error:
            self._ring_at = time.monotonic() + RING_SECONDS
            counters.add("staged_unavailable", reason="there is no memory for its buffers", detail=error)
        return self._ring

    def _launch_there(self, jobs: Sequence[Job], done: torch.cuda.Event) -> None:
        self._here(lambda: self._launch(jobs, done))

    def _launch(self, jobs: Sequence[Job], done: torch.cuda.Event) -> None:
        """Launch. If that fails, nothing that was launched may land later on: wait for it, then raise RuntimeError."""
        try:
            for job in jobs:
                job.launch()
            done.record(self._streams[0])
        except (*FAILURES, TritonError) as error:
            for stream in self._streams:
                stream.synchronize()
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
