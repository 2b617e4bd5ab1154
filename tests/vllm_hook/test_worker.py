"""The worker side against a fake data half: every load ends, and what it could not fill is said."""

from __future__ import annotations

from typing import Any

from kvmarket.offer import Hit
from vllm_hook.guard import Guard
from vllm_hook.metadata import Load, StepDone, StepMetadata
from vllm_hook.worker import WorkerSide

HIT = Hit(12, 3, 0, (), {})


class FakeMoved:
    seconds = 0.0

    def __init__(self) -> None:
        self.valid: list[bool] = []

    def done(self) -> bool:
        return bool(self.valid)

    def wait(self) -> int:
        return [*self.valid, False].index(False)


class FakeData:
    def __init__(self) -> None:
        self.moved: list[FakeMoved] = []
        self.broken = False
        self.gone: list[str] = []

    def fetch(self, hit: Hit, slots: Any) -> FakeMoved:
        if self.broken:
            raise RuntimeError("fetch is broken")
        self.moved.append(FakeMoved())
        return self.moved[-1]

    def forget(self, pools: Any) -> None:
        self.gone += pools


def worker() -> tuple[WorkerSide, FakeData]:
    side, data = WorkerSide(None, None), FakeData()
    side._data = data  # type: ignore[assignment]
    return side, data


def test_loads_end_when_the_copy_has():
    side, data = worker()
    side.start(StepMetadata(1, (Load("a", HIT, (4, 5, 6)), Load("b", HIT, (7, 8, 9))), ("gone",)))
    side.poll()
    assert side.take_finished() == set() and data.gone == ["gone"]
    data.moved[1].valid, data.moved[1].seconds = [True, False, True], 0.25
    side.poll()
    assert side.take_seconds() == [0.25] and side.take_seconds() == []
    assert side.take_finished() == {"b"} and side.take_bad() == {8, 9}, "only leading blocks count"
    data.moved[0].valid = [True] * 3
    side.poll()
    assert side.take_finished() == {"a"} and side.take_bad() == set()
    side.poll()
    assert side.take_finished() == set(), "said twice"


def test_loads_that_cannot_start_fail_at_once():
    side, data = worker()
    data.broken = True
    with Guard("test", side.failed):
        side.start(StepMetadata(1, (Load("a", HIT, (4, 5)), Load("b", HIT, (6, 7)))))
    assert side.take_finished() == {"a", "b"} and side.take_bad() == {4, 5, 6, 7}
    assert side.take_seconds() == []
    side.start(StepMetadata(2, (Load("c", None, (8,)),)))
    assert side.take_finished() == {"c"} and side.take_bad() == {8}
    side.refuse("no memory")
    side.start(StepMetadata(3, (Load("d", HIT, (9,)),)))
    assert side.take_finished() == {"d"} and side.handshake().refusal == "no memory"


def test_ranks_are_counted():
    both = StepDone(4, unreachable=("p",)).aggregate(StepDone(5))
    assert both == StepDone(4, 2, ("p",))
