"""The driver: starts, kills, stops and replaces engines, kills the service, and notes what must not happen."""

from __future__ import annotations

import heapq
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address
from tests.chaos import leaks
from tests.chaos.crowd import crowd
from tests.chaos.incarnation import TRACEBACK, Incarnation
from tests.chaos.owner import Life
from tests.chaos.plan import Plan
from tests.chaos.result import Result

TICK_SECONDS = 0.01
SERVICE_EXIT_SECONDS = 3.0  # how long a service outlives its last engine
LEAVE_SECONDS = 3.0
MEASURING_SECONDS = 60.0  # how long a run goes on when it should be over, if no leak could be seen yet
CROWDED = 0.9  # share of the crowd's offers that a service must have before its memory is sampled


class Driver:
    """One run, in a folder of its own that is removed afterwards."""

    def __init__(self, plan: Plan, progress: Callable[[str], None] = lambda _line: None) -> None:
        """`progress` gets a line of text every five seconds."""
        self.plan, self.result = plan, Result(asdict(plan))
        self._progress = progress
        self._home = Path(tempfile.mkdtemp(prefix="kvm-", dir="/tmp"))
        self._address = Address(self._home / "market" / "s")
        self._chance = random.Random(plan.seed + 1)
        self._engines: list[Incarnation] = []
        self._pids: set[int] = set()
        self._events = plan.events()
        self._due: list[tuple[float, int, str]] = []  # later parts of events: moment, engine's number, what
        self._samples: dict[int, leaks.Samples] = {}  # by process
        self._next_sample = self._next_line = self._next_look = 0.0
        self._crowd: BaseProcess | None = None
        self._start = time.monotonic()

    def run(self) -> Result:
        """Run the plan; then have all engines leave, and look for what is left behind."""
        memory = leaks.gpu_memory() if self.plan.device != "cpu" else 0
        try:
            for index in range(self.plan.engines):
                self._begin(kept=index < self.plan.keep, fault=self.plan.fault if index == 0 else "")
            for index in range(self.plan.lenders):
                self._begin(kept=index == 0, lends=True)
            if self.plan.branches or self.plan.tenants:
                self._crowd = multiprocessing.get_context("spawn").Process(
                    target=crowd, args=(str(self._address), self.plan.branches, self.plan.tenants), daemon=True
                )
                self._crowd.start()
            self._start = time.monotonic()
            while not self._over():
                self._act()
                self._watch()
                self._report()
                time.sleep(TICK_SECONDS)
            self.result.seconds = self._elapsed()
            self._let_all_go_on()
            self._leave()
            self._look_for_remains(memory)
        finally:
            for engine in self._engines:
                engine.kill()
            shutil.rmtree(self._home, ignore_errors=True)
        return self.result

    def _let_all_go_on(self) -> None:
        """Resume all stopped processes, and end the crowd."""
        for _, number, what in self._due:
            if what == "resume_service":
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)
        if self._crowd is not None:
            if not self._crowd.is_alive():
                self.result.exceptions.append(f"the engine with many branches has died: {self._crowd.exitcode}")
            self._crowd.kill()
            self._crowd.join()

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _over(self) -> bool:
        if self._elapsed() < self.plan.seconds or self._events:
            return False
        late = self._elapsed() - 3 * self.plan.seconds
        fetched = self._fetches() >= self.plan.fetches or late > 0
        return fetched and (late > MEASURING_SECONDS or not self._unmeasured())

    def _unmeasured(self) -> list[str]:
        """Names of the kept engines that run, and were sampled too rarely for a leak to show."""
        kept = [engine for engine in self._engines if engine.kept and engine.alive]
        return [
            engine.life.name
            for engine in kept
            if engine.pid not in self._samples or self._samples[engine.pid].levels() is None
        ]

    def _fetches(self) -> int:
        return self.result.done["fetches"] + sum(engine.tally["fetches"] for engine in self._engines)

    def _begin(self, *, kept: bool = False, fault: str = "", lends: bool = False) -> None:
        number = self.result.incarnations
        name, steady = f"{'lender' if lends else 'engine'}{number}", kept and number == 0
        seed = self.plan.seed * 1_000_003 + number
        life = Life(
            str(self._address), str(self._home), name, seed, self.plan.seed, self.plan.device, not steady, fault,
            self.plan.loss, lends,
        )  # fmt: skip
        engine = Incarnation(life, kept=kept)
        self._engines.append(engine)
        self._pids.add(engine.pid)
        self.result.incarnations += 1

    def _act(self) -> None:
        """Do what is due: events of the plan, and their later parts."""
        now = self._elapsed()
        while self._events and self._events[-1][0] <= now:
            getattr(self, f"_{self._events.pop()[1]}")()
        while self._due and self._due[0][0] <= now:
            _, number, what = heapq.heappop(self._due)
            if what in ("begin", "begin a lender"):
                self.result.restarts += 1
                self._begin(lends=what != "begin")
            if what == "resume_service":
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)
            for engine in self._engines:
                if what == "resume" and engine.pid == number:
                    engine.resume()

    def _later(self, seconds: float, what: str, number: int = 0) -> None:
        heapq.heappush(self._due, (self._elapsed() + seconds, number, what))

    def _kill(self) -> None:
        victims = [engine for engine in self._engines if not engine.kept and engine.alive]
        if not victims:
            self._events.append((self._elapsed() + 0.05, "kill"))
            self._events.sort(reverse=True)
            return
        victim = self._chance.choice(victims)
        victim.kill()
        self.result.kills += 1
        self._bury(victim)
        self._later(self._chance.choice((0.0, 0.0, 0.3)), _begin_of(victim))

    def _stop(self) -> None:
        running = [engine for engine in self._engines if engine.alive and not engine.stopped]
        if running:
            engine = self._chance.choice(running)
            engine.stop()
            self.result.stops += 1
            self._later(self._chance.choice((0.01, 0.1, 1.0, 2.0)), "resume", engine.pid)

    def _kill_service(self) -> None:
        try:
            pid = ask_status(self._address).service.pid
            os.kill(pid, signal.SIGKILL)
        except (RegistryError, ProcessLookupError):  # it is just being started: once more, later
            self._events.append((self._elapsed() + 0.2, "kill_service"))
            self._events.sort(reverse=True)
            return
        self._read_service_log()
        self.result.service_kills += 1

    def _stop_service(self) -> None:
        """Stop the service for a while: messages to it wait, or are sent again."""
        try:
            pid = ask_status(self._address).service.pid
            os.kill(pid, signal.SIGSTOP)
        except (RegistryError, ProcessLookupError):
            return
        self.result.service_stops += 1
        self._later(self._chance.choice((0.1, 0.5, 2.0)), "resume_service", pid)

    def _watch(self) -> None:
        """Note engines that died, hang or saw a wrong byte; sample what the kept ones hold."""
        for engine in list(self._engines):
            if engine.alive and engine.hangs(self.plan.hang_seconds):
                engine.explain()
                self.result.hangs.append(f"{engine.life} hangs after step {engine.tally['steps']}:\n{engine.log()}")
                engine.kill()
            if not engine.alive:
                self._bury(engine)
                self._later(0.0, _begin_of(engine))
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + max(0.2, self.plan.seconds / 100)
            self._look_who_is_settled()
        if time.monotonic() > self._next_sample:
            self._next_sample = time.monotonic() + max(0.2, self.plan.seconds / 300)
            for pid, samples in self._samples.items():
                samples.take(pid)  # no sample, if the service of this process was killed

    def _look_who_is_settled(self) -> None:
        """Begin to sample the service and the kept engines when the service knows the crowd (again).

        A kept lender only when all of its memory has been lent: each segment has descriptors and a thread.
        """
        with suppress(RegistryError):
            status = ask_status(self._address)
            if status.blocks >= CROWDED * (self.plan.branches + self.plan.tenants):
                self._samples.setdefault(status.service.pid, leaks.Samples(f"service {status.service.pid}"))
                for engine in self._engines:
                    if engine.kept and (engine.tally["full"] or not engine.life.lends):
                        self._samples.setdefault(engine.pid, leaks.Samples(f"{engine.life.name}, never killed"))

    def _bury(self, engine: Incarnation) -> None:
        """Add a dead engine's counts, logs and faults to the result."""
        self._engines.remove(engine)
        self.result.done.update(engine.tally.counts())
        self.result.counters.update(engine.counters())
        if engine.tally["wrong"] or engine.tally["refused"]:
            what = f"{engine.tally['wrong']} wrong blocks, {engine.tally['refused']} refusals"
            self.result.wrong.append(f"{what} seen by {engine.life}:\n{engine.log()}")
        if trouble := engine.trouble():
            self.result.exceptions.append(trouble)
        engine.forget()

    def _report(self) -> None:
        if time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + 5
            found = self.result
            wrong = found.done["wrong"] + sum(engine.tally["wrong"] for engine in self._engines)
            self._progress(
                f"{self._elapsed():7.1f} s  {self._fetches():9} fetches  {wrong} wrong  {found.kills} kills  "
                f"{found.service_kills} service kills  {len(found.hangs)} hangs  {len(found.exceptions)} exceptions"
            )

    def _leave(self) -> None:
        """Have all engines leave the market; an engine that does not counts as hanging."""
        for samples in self._samples.values():
            if (levels := samples.levels()) is not None:
                self.result.held[samples.who] = levels
            self.result.leaks.extend(samples.leaks())
        self.result.unmeasured = self._unmeasured()
        for engine in self._engines:
            engine.resume()
            engine.tally.stop()
        deadline = time.monotonic() + self.plan.hang_seconds
        for engine in list(self._engines):
            engine.process.join(max(0.0, deadline - time.monotonic()))
            if engine.alive:
                engine.explain()
                self.result.hangs.append(f"{engine.life} does not leave:\n{engine.log()}")
                engine.kill()
            self._bury(engine)

    def _look_for_remains(self, memory: int) -> None:
        deadline = time.monotonic() + SERVICE_EXIT_SECONDS + LEAVE_SECONDS
        while (left := leaks.left_by_market(self._address)) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._read_service_log()
        self.result.leaks.extend([*left, *leaks.left_in_shm(self._pids)])
        if self.plan.device != "cpu" and (more := leaks.gpu_memory() - memory) > leaks.MiB:
            self.result.leaks.append(f"{more / leaks.MiB:.0f} MiB more GPU memory in use than at the start")

    def _read_service_log(self) -> None:
        log = self._address.log
        text = log.read_text(errors="replace") if log.exists() else ""
        if TRACEBACK in text:
            self.result.exceptions.append(f"an exception in the service:\n{text}")
            log.write_text("")


def _begin_of(dead: Incarnation) -> str:
    """What must be done for another one of its kind to begin."""
    return "begin a lender" if dead.life.lends else "begin"
