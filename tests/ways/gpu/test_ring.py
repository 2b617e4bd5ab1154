"""The buffers of staged fetches, where there is no memory for them: counted, tried again later, never given up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket import counters
from kvmarket.ways.gpu import staged_way
from kvmarket.ways.gpu.staged_way import StagedWay
from kvmarket.ways.way import Means

PAIR: Any = SimpleNamespace(count=64)
COPY: Any = SimpleNamespace(summed=False)


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The way of a mover without a GPU, whose next two rings find no memory."""
    failures = [torch.OutOfMemoryError(f"{free} MiB free") for free in (1, 2)]

    def ring(own: Any, stream: Any) -> str:
        if failures:
            raise failures.pop()
        return "a ring"

    monkeypatch.setattr(staged_way, "Ring", ring)
    monkeypatch.setattr(staged_way, "StagedJob", lambda means, ring, copy: f"a job of {ring}")
    monkeypatch.setattr(staged_way.time, "monotonic", lambda: clock.now)
    clock = SimpleNamespace(now=100.0)
    made: Any = StagedWay(Means(None, (None, None)))  # type: ignore[arg-type]
    made.clock = clock
    return made


def test_no_memory_for_a_moment_is_no_memory_for_that_moment(way):
    name = "staged_unavailable{there is no memory for its buffers}"
    before = counters.snapshot().get(name, 0)
    make = way.prepare(SimpleNamespace(layout=SimpleNamespace(packed=True)))
    for tries in (1, 2):
        assert way.takes(COPY, PAIR) and make(COPY) is None
        assert counters.snapshot()[name] == before + tries, "one name, whatever the allocator says"
        way.clock.now += staged_way.RING_SECONDS - 1
        assert not way.takes(COPY, PAIR)
        way.clock.now += 1
    assert way._ring is None, "asking whether it may be taken allocates nothing"
    assert way.takes(COPY, PAIR) and make(COPY) == "a job of a ring"
    way._ring_at = 1e9
    assert way.takes(COPY, PAIR), "what is there is used"
