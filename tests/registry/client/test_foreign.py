"""Pools in other PID namespaces: what is asked for, what comes, and what is let go of."""

from __future__ import annotations

import os
import socket

import msgspec
import pytest

from kvmarket import counters
from kvmarket.processes import shared_file
from kvmarket.processes.shared_file import Process, SharedFile
from kvmarket.registry.client.foreign import ASK_SECONDS, ForeignPools
from kvmarket.registry.protocol.descriptors import MOST_DESCRIPTORS
from kvmarket.registry.protocol.messages import AskDescriptors, Descriptors, PoolRecord, unpack_reply
from kvmarket.registry.protocol.packets import PacketSocket
from tests.scarcity import descriptors, no_descriptors
from tests.sleepers import Sleeper

ME = Process.current()
ELSEWHERE = msgspec.structs.replace(ME, namespace=ME.namespace + 1)


@pytest.fixture
def line():
    """Both ends of a connection: that of the engine, and that of the service."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with PacketSocket(one) as ours, PacketSocket(other) as theirs:
        yield ours, theirs


@pytest.fixture
def sleeper():
    """A process to kill."""
    made = Sleeper()
    yield made
    made.kill()


@pytest.fixture
def foreign():
    """One without pools of its own."""
    made = ForeignPools(lambda _pool: ((), ()))
    yield made
    made.close()


@pytest.fixture
def files():
    """Names three pages of shared memory each."""
    made = []

    def make(count: int) -> list[SharedFile]:
        for _ in range(count):
            fd = os.memfd_create("pool")
            os.ftruncate(fd, 4096)
            made.append(fd)
        return [SharedFile.of(fd, 4096) for fd in made[-count:]]

    yield make
    for fd in made:
        os.close(fd)


def record(pool: str, *processes: Process) -> PoolRecord:
    return PoolRecord(pool, 8, processes, b"")


def asked(theirs: PacketSocket) -> list[str]:
    """Which pools the service was asked for since the last time."""
    found = []
    while (frame := theirs.receive()) is not None:
        found.append(unpack_reply(frame).pool)
    return found


def carried(ours: PacketSocket, theirs: PacketSocket) -> list[tuple[Descriptors, list[int]]]:
    """What the engine has sent."""
    found = []
    while (frame := theirs.receive()) is not None:
        found.append((unpack_reply(frame), theirs.take_descriptors()))
        ours.flush()
    return found


def test_only_what_cannot_be_opened_is_asked_for_and_again_until_it_comes(foreign, line):
    ours, theirs = line
    records = [record("near", ME), record("far", ELSEWHERE), record("both", ME, ELSEWHERE)]
    assert foreign.look(records, ours, 100.0) and asked(theirs) == ["far", "both"]
    assert foreign.look(records, ours, 100.0 + ASK_SECONDS / 2) and asked(theirs) == []
    assert foreign.look((), ours, 100.1 + ASK_SECONDS) and asked(theirs) == ["far", "both"]
    assert not ForeignPools(lambda _pool: ((), ())).look(records[:1], ours, 100.0) and asked(theirs) == []


@pytest.mark.parametrize("count", [1, MOST_DESCRIPTORS - 2, MOST_DESCRIPTORS, 2 * MOST_DESCRIPTORS + 3])
def test_memory_goes_from_one_to_the_other_whole_and_in_order(foreign, line, files, count):
    memory = files(count)
    owner = ForeignPools(lambda pool: ((ME, ME), memory) if pool == "pool" else ((), ()))
    ours, theirs = line
    foreign.look([record("pool", ELSEWHERE, ELSEWHERE)], ours, 100.0)
    assert asked(theirs) == ["pool"] and foreign.of("pool") is None
    before = descriptors()
    owner.answer(AskDescriptors("pool"), ours)
    parts = carried(ours, theirs)
    assert len(parts) == -(-(count + 1) // MOST_DESCRIPTORS), "a pidfd goes with them"
    for told, came in reversed(parts):
        assert foreign.of("pool") is None
        foreign.heard(told, came)
    held = foreign.of("pool")
    assert held is not None and len(held) == count
    for file, fd in zip(memory, held, strict=True):
        relayed = file.held_by(ME, fd)
        assert relayed.held() and not os.get_inheritable(fd)
        relayed.map().close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")  # for reading only
    assert not foreign.look([record("pool", ELSEWHERE)], ours, 1e9) and asked(theirs) == [], "it is held"
    assert descriptors() == before + count + 1
    foreign.forget(["pool"])
    assert foreign.of("pool") is None and descriptors() == before
    assert not memory[0].held_by(ME, held[0]).held()


def test_what_came_twice_or_unasked_or_short_is_closed(foreign, line, files):
    owner, (ours, theirs) = ForeignPools(lambda _pool: ((ME,), memory)), line
    memory = files(MOST_DESCRIPTORS + 1)
    before = descriptors()

    def told() -> list[tuple[Descriptors, list[int]]]:
        owner.answer(AskDescriptors("pool"), ours)
        return carried(ours, theirs)

    for part in told():
        foreign.heard(*part)
    assert foreign.of("pool") is None and descriptors() == before, "nobody has asked"
    foreign.look([record("pool", ELSEWHERE)], ours, 100.0)
    asked(theirs)
    first, second = told()
    foreign.heard(*first)
    foreign.heard(second[0], second[1])
    assert foreign.of("pool") is not None
    for part in told():
        foreign.heard(*part)
    assert descriptors() == before + len(memory) + 1
    foreign.close()
    assert descriptors() == before


def test_descriptors_that_the_kernel_left_out_are_asked_for_again(foreign, line, files):
    owner, (ours, theirs) = ForeignPools(lambda _pool: ((ME,), memory)), line
    memory = files(3)
    foreign.look([record("pool", ELSEWHERE)], ours, 100.0)
    asked(theirs)
    owner.answer(AskDescriptors("pool"), ours)
    before = descriptors()
    with no_descriptors(2):
        frame = theirs.receive()
        came = theirs.take_descriptors()
        assert len(came) < 4
        foreign.heard(unpack_reply(frame), came)
    assert foreign.of("pool") is None and descriptors() == before
    assert foreign.look([record("pool", ELSEWHERE)], ours, 200.0) and asked(theirs) == ["pool"]


def test_an_owner_without_descriptors_says_nothing_and_leaks_none(line, files):
    memory = files(3)
    owner, (ours, theirs) = ForeignPools(lambda _pool: ((ME,), memory)), line
    before = descriptors()
    with no_descriptors(2):
        owner.answer(AskDescriptors("pool"), ours)
    assert carried(ours, theirs) == [] and descriptors() == before
    owner.answer(AskDescriptors("of somebody else"), ours)
    parts = carried(ours, theirs)
    assert [told.total for told, _ in parts] == [4]
    for fd in parts[0][1]:
        os.close(fd)


def test_an_owner_that_has_lost_a_process_says_nothing(line, files, sleeper):
    memory, sent = files(1), "descriptors_not_sent{"
    owner, (ours, theirs) = ForeignPools(lambda _pool: ((ME, sleeper.known), memory)), line
    counted = sum(n for name, n in counters.snapshot().items() if name.startswith(sent))
    sleeper.kill()
    before = descriptors()
    owner.answer(AskDescriptors("pool"), ours)
    assert carried(ours, theirs) == [] and descriptors() == before
    assert sum(n for name, n in counters.snapshot().items() if name.startswith(sent)) == counted + 1


def test_another_process_that_has_the_number_now_does_not_stand_for_a_dead_one(line, files, sleeper):
    memory, other = files(1), msgspec.structs.replace(sleeper.known, start=sleeper.known.start - 1)
    owner, (ours, theirs) = ForeignPools(lambda _pool: ((other,), memory)), line
    before = descriptors()
    owner.answer(AskDescriptors("pool"), ours)
    assert carried(ours, theirs) == [] and descriptors() == before


def test_nothing_is_kept_of_pools_that_have_gone(foreign, line):
    ours, theirs = line
    foreign.look([record("near", ME), record("far", ELSEWHERE)], ours, 100.0)
    asked(theirs)
    foreign.forget(["near", "far"])
    assert not foreign.look([], ours, 1e9) and not foreign._processes


def test_a_process_elsewhere_lives_until_its_pidfd_says_otherwise(foreign, line, sleeper):
    ours, theirs = line
    elsewhere = msgspec.structs.replace(sleeper.known, namespace=ELSEWHERE.namespace)
    assert elsewhere.alive(), "nothing tells"
    owner = ForeignPools(lambda _pool: ((sleeper.known,), ()))
    foreign.look([record("pool", elsewhere)], ours, 100.0)
    asked(theirs)
    owner.answer(AskDescriptors("pool"), ours)
    for part in carried(ours, theirs):
        foreign.heard(*part)
    assert elsewhere.alive() and foreign.of("pool") == ()
    sleeper.kill()
    assert not elsewhere.alive()
    foreign.forget(["pool"])
    assert elsewhere.alive() and not shared_file._ends, "nothing tells any more"
