"""A worker side with a fake data half, whose copies end when the test says so."""

from __future__ import annotations

import time
from typing import Any

from kvmarket.market.offer import Hit
from kvmarket.pool import as_slots
from vllm_hook.metadata import Load
from vllm_hook.worker.side import WorkerSide

HIT = Hit(12, 3, 0, (), {})


class FakeMoved:
    seconds = 0.0

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.valid: list[bool] = []
        self.looks = 0

    def done(self) -> bool:
        self.looks += 1
        return bool(self.valid)

    def wait(self) -> int:
        return [*self.valid, False].index(False)


class FakeData:
    def __init__(self) -> None:
        self.moved: list[FakeMoved] = []
        self.broken = False
        self.gone: list[str] = []
        self.far: list[Any] = []

    def fetch(self, hit: Hit, slots: Any) -> FakeMoved:
        if self.broken:
            raise RuntimeError("fetch is broken")
        self.moved.append(FakeMoved())
        return self.moved[-1]

    def forget(self, pools: Any) -> None:
        self.gone += pools

    def map_ahead(self, pools: Any) -> None:
        self.far += pools


def load(name: str, hit: Hit | None, *slots: int) -> Load:
    return Load(name, hit, as_slots(slots))


def worker() -> tuple[WorkerSide, FakeData]:
    side, data = WorkerSide(None, None), FakeData()
    side._data = data  # type: ignore[assignment]
    return side, data
