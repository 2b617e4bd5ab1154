"""The buffers of staged fetches, where there is no memory for them: counted, tried again later, never given up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket import counters
from kvmarket.ways import gpu
from kvmarket.ways.gpu import GpuMover


@pytest.fixture
def mover(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A mover without a GPU, whose next two rings find no memory."""
    failures = [torch.OutOfMemoryError(f"{free} MiB free") for free in (1, 2)]

    def ring(own: Any, stream: Any) -> str:
        if failures:
            raise failures.pop()
        return "a ring"

    monkeypatch.setattr(gpu, "Ring", ring)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock.now)
    clock = SimpleNamespace(now=100.0)
    made = GpuMover.__new__(GpuMover)
    made._ring, made._ring_at, made._own, made._streams = None, 0.0, None, (None, None)  # type: ignore[assignment]
    made.clock = clock  # type: ignore[attr-defined]
    return made


def test_no_memory_for_a_moment_is_no_memory_for_that_moment(mover):
    name = "staged_unavailable{there is no memory for its buffers}"
    before = counters.snapshot().get(name, 0)
    for tries in (1, 2):
        assert mover._has_ring() and mover._new_ring() is None
        assert counters.snapshot()[name] == before + tries, "one name, whatever the allocator says"
        mover.clock.now += gpu.RING_SECONDS - 1
        assert not mover._has_ring()
        mover.clock.now += 1
    assert mover._has_ring() and mover._new_ring() == "a ring"
    mover._ring_at = 1e9
    assert mover._has_ring(), "what is there is used"
