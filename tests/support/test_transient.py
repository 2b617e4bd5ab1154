"""What may succeed when it is tried again is told from what never will."""

from __future__ import annotations

import errno

import pytest

from kvmarket.errors import PeerAccessError, SharedMemoryError, TransportError
from kvmarket.pool.avoided import AT_ONCE, FORGIVEN, LONGEST, SHORTEST, Avoided
from kvmarket.support.transient import ERRNOS, is_transient


def caused_by(error: BaseException) -> TransportError:
    wrapped = TransportError("it cannot be mapped")
    wrapped.__cause__ = error
    return wrapped


PASSING = [
    *(OSError(number, "") for number in ERRNOS),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: mapping of buffer object failed"),
    RuntimeError("unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)"),
    RuntimeError("can't start new thread"),
]
LASTING = [
    OSError(errno.EACCES, ""),
    OSError(errno.ENOENT, ""),
    RuntimeError("CUDA error: invalid resource handle"),
    ValueError("Too many open files"),
    PeerAccessError("no peer access"),
    SharedMemoryError("not what its owner said"),
]


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass(error):
    assert is_transient(error)
    assert is_transient(caused_by(caused_by(error))), "its cause tells"


@pytest.mark.parametrize("error", LASTING)
def test_what_does_not(error):
    assert not is_transient(error)
    assert not is_transient(caused_by(error))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def avoided(clock):
    return Avoided(clock)


def test_a_pool_is_tried_again_at_once_then_later_and_later(avoided, clock):
    pauses = []
    for _ in range(AT_ONCE + 8):
        avoided.for_now("a")
        start = clock.now
        while avoided.now():
            assert set(avoided.now()) == {"a"}
            clock.now += SHORTEST / 10
        pauses.append(round(clock.now - start, 3))
    assert pauses[:AT_ONCE] == [0.0] * AT_ONCE
    later = pauses[AT_ONCE:]
    assert later[0] == pytest.approx(SHORTEST, rel=0.2)
    assert later[1] == pytest.approx(2 * SHORTEST, rel=0.2)
    assert later == sorted(later)
    assert later[-1] == pytest.approx(LONGEST, rel=0.2)


def test_after_a_while_without_failures_the_next_one_counts_as_the_first(avoided, clock):
    for _ in range(AT_ONCE + 3):
        avoided.for_now("a")
    assert avoided.now()
    clock.now += FORGIVEN + 0.1
    avoided.for_now("a")
    assert not avoided.now()


def test_for_good_is_until_it_is_forgotten(avoided, clock):
    assert not avoided.now()
    avoided.for_good("a")
    assert set(avoided.now()) == {"a"}
    for _ in range(AT_ONCE + 1):
        avoided.for_now("b")
    assert set(avoided.now()) == {"a", "b"}
    clock.now += 1000
    assert set(avoided.now()) == {"a"}
    avoided.forget(["a", "nobody"])
    assert not avoided.now()


def test_each_pool_has_its_own_end(avoided, clock):
    for _ in range(AT_ONCE + 1):
        avoided.for_now("short")
    for _ in range(AT_ONCE + 3):
        avoided.for_now("long")
    clock.now += 1.5 * SHORTEST
    assert set(avoided.now()) == {"long"}
    clock.now += 5 * SHORTEST
    assert not avoided.now()


def test_a_forgotten_pool_starts_anew(avoided):
    for _ in range(AT_ONCE + 1):
        avoided.for_now("a")
    avoided.forget(["a"])
    assert not avoided.now()
    avoided.for_now("a")
    assert not avoided.now()
