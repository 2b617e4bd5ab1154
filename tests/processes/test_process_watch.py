"""Who dies is told of at once, by a thread that costs nothing until then."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kvmarket import counters
from kvmarket.processes import process_watch
from kvmarket.processes.process_watch import ProcessWatch
from kvmarket.processes.relayed import Relayed, lives_with
from kvmarket.processes.shared_file import Process, SharedFile, pid_namespace
from tests.model_engine import until
from tests.scarcity import descriptors, no_descriptors
from tests.sleepers import Sleeper, watching


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    made = [Sleeper(), Sleeper()]
    yield made
    for sleeper in made:
        sleeper.kill()


class Heir:
    """Hears of deaths."""

    def __init__(self) -> None:
        self.calls: list[set[Process]] = []
        self.finished = True
        self.fails = 0

    def heed(self, dead: frozenset[Process]) -> bool:
        self.calls.append(set(dead))
        if self.fails:
            self.fails -= 1
            raise ValueError("not now")
        return self.finished

    @property
    def dead(self) -> set[Process]:
        return set().union(*self.calls)


@pytest.mark.parametrize("reap", [True, False], ids=["reaped", "zombie"])
def test_a_death_is_told_of_within_some_ms(sleepers, reap):
    heir = Heir()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleeper.known for sleeper in sleepers])
    time.sleep(0.05)
    assert not heir.calls
    sleepers[0].kill(reap)
    assert until(lambda: heir.calls) < 0.5
    assert heir.calls == [{sleepers[0].known}]
    time.sleep(0.1)
    assert heir.calls == [{sleepers[0].known}], "once"
    sleepers[1].kill(reap)
    until(lambda: heir.dead == {sleepers[0].known, sleepers[1].known})
    watch.close()
    assert not watching()


def test_who_wants_to_be_called_again_and_again_is(sleepers):
    heir = Heir()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleepers[0].known])
    time.sleep(0.05)
    assert not heir.calls
    watch.watch([sleepers[0].known], 0.01)
    until(lambda: len(heir.calls) > 3)
    assert heir.dead == set()
    sleepers[0].kill()
    until(lambda: heir.dead == {sleepers[0].known})
    watch.watch([sleepers[1].known])
    time.sleep(0.05)
    before = len(heir.calls)
    time.sleep(0.1)
    assert len(heir.calls) == before, "no more"
    watch.close()


def test_who_is_dead_already_is_told_of(sleepers):
    heir = Heir()
    sleepers[0].kill()
    reused = Process(os.getppid(), 1, pid_namespace())  # another process has its number by now
    watch = ProcessWatch(heir.heed)
    watch.watch([sleepers[0].known, reused])
    until(lambda: heir.dead == {sleepers[0].known, reused})
    watch.close()


def test_who_is_watched_no_more_is_not_told_of(sleepers):
    heir, before = Heir(), descriptors()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleeper.known for sleeper in sleepers])
    until(lambda: descriptors() == before + 3)
    watch.watch([sleepers[1].known])
    until(lambda: descriptors() == before + 2)
    sleepers[0].kill()
    time.sleep(0.1)
    assert not heir.calls
    watch.watch([])
    until(lambda: descriptors() == before and not watching())
    watch.watch([sleepers[1].known])
    sleepers[1].kill()
    until(lambda: heir.calls == [{sleepers[1].known}])
    watch.close()
    assert descriptors() == before
    watch.close()


def test_whoever_has_not_finished_is_called_again(sleepers):
    heir = Heir()
    heir.finished = False
    watch = ProcessWatch(heir.heed)
    watch.watch([sleepers[0].known])
    sleepers[0].kill()
    until(lambda: len(heir.calls) > 3)
    assert heir.calls[1:4] == [set()] * 3
    watch.watch([])
    calls = len(heir.calls)
    until(lambda: len(heir.calls) > calls + 1)
    heir.finished = True
    until(lambda: not watching())
    watch.close()


def test_it_survives_an_exception_and_tells_again(sleepers, monkeypatch):
    monkeypatch.setattr(process_watch, "LOOK_SECONDS", 0.05)
    heir = Heir()
    heir.fails = 2
    watch = ProcessWatch(heir.heed)
    watch.watch([sleepers[0].known])
    sleepers[0].kill()
    until(lambda: len(heir.calls) == 3)
    assert heir.calls == [{sleepers[0].known}] * 3
    watch.close()


def test_without_descriptors_it_looks_now_and_then(sleepers, monkeypatch):
    monkeypatch.setattr(process_watch, "LOOK_SECONDS", 0.05)
    heir, before = Heir(), descriptors()
    watch = ProcessWatch(heir.heed)
    with no_descriptors():
        watch.watch([sleeper.known for sleeper in sleepers])
        time.sleep(0.2)
        assert not heir.calls, "the living are not taken for dead"
        sleepers[0].kill()
        until(lambda: heir.calls == [{sleepers[0].known}])
    assert any(name.startswith("watch_delayed") for name in counters.snapshot())
    until(lambda: descriptors() == before + 2)  # the eventfd and one process: tried again
    monkeypatch.setattr(process_watch, "LOOK_SECONDS", 60.0)
    sleepers[1].kill()
    assert until(lambda: heir.dead == {sleepers[0].known, sleepers[1].known}) < 1
    watch.close()
    assert descriptors() == before


def test_who_dies_unreaped_while_there_is_no_descriptor_for_it(sleepers, monkeypatch):
    """Its number is still taken; what tells is /proc."""
    monkeypatch.setattr(process_watch, "LOOK_SECONDS", 0.05)

    def refuse(*_: int) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(os, "eventfd", refuse)
    heir = Heir()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleeper.known for sleeper in sleepers])
    time.sleep(0.2)
    assert not heir.calls
    sleepers[0].kill(reap=False)
    until(lambda: heir.calls == [{sleepers[0].known}])
    watch.close()


def test_it_uses_no_cpu_while_nobody_dies(sleepers):
    heir = Heir()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleeper.known for sleeper in sleepers])
    until(watching)
    time.sleep(0.1)
    (native,) = {thread.native_id for thread in threading.enumerate() if thread.name == "kvmarket-peers"}
    stat = Path(f"/proc/self/task/{native}/status")
    switches = [line for line in stat.read_text().splitlines() if "ctxt_switches" in line]
    time.sleep(1.2)
    assert [line for line in stat.read_text().splitlines() if "ctxt_switches" in line] == switches
    watch.close()


def test_dropping_it_ends_the_thread(sleepers):
    heir, before = Heir(), descriptors()
    watch = ProcessWatch(heir.heed)
    watch.watch([sleepers[0].known])
    until(lambda: watching() and descriptors() == before + 2)
    del watch
    gc.collect()
    until(lambda: not watching() and descriptors() == before)


def test_no_thread_for_a_moment(sleepers, monkeypatch):
    heir = Heir()
    watch = ProcessWatch(heir.heed)

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        watch.watch([sleepers[0].known])
    watch.watch([sleepers[0].known])
    sleepers[0].kill()
    until(lambda: heir.calls)
    watch.close()


def test_a_process_elsewhere_has_ended_when_its_memory_is_let_go_of(sleepers, monkeypatch):
    monkeypatch.setattr(process_watch, "LOOK_SECONDS", 0.02)
    heir, fd = Heir(), os.memfd_create("pool")
    file = SharedFile.of(fd, 0)
    elsewhere = msgspec.structs.replace(sleepers[0].known, namespace=pid_namespace() + 1)
    relayed = lives_with(elsewhere, file)
    assert relayed == Relayed(elsewhere, file) and lives_with(sleepers[0].known, file) == sleepers[0].known
    before = counters.snapshot().get("watch_delayed", 0)
    watch = ProcessWatch(heir.heed)
    watch.watch([relayed, sleepers[1].known])
    sleepers[0].kill()  # whose number it has
    time.sleep(0.1)
    assert not heir.calls
    sleepers[1].kill()
    assert until(lambda: heir.dead == {sleepers[1].known}) < 0.5
    other = os.memfd_create("other")
    os.dup2(other, fd)  # the number of the descriptor is in use again
    assert until(lambda: heir.dead == {relayed, sleepers[1].known}) < 0.5
    assert counters.snapshot().get("watch_delayed", 0) == before
    watch.close()
    os.close(fd)
    os.close(other)
