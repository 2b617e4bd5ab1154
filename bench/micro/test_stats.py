"""What the hook's statistics cost in each step of a vLLM engine: vLLM asks both sides, mostly without news."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from kvmarket import counters
from vllm_hook.metrics.stats import Interval, MarketStats

NAMES = ("vllm_tokens_asked", "vllm_tokens_imported", "vllm_tokens_local", "bytes_fetched", "blocks_fetched")
REASONS = ("fetch_stale", "vllm_blocks_lost", "vllm_import_refused", "offer_dropped", "failed_closed", "service_lost")


@pytest.fixture
def interval() -> Interval:
    """An Interval of a process whose counters have many kinds of keys."""
    for name in NAMES:
        counters.add(name)
    for name in REASONS:
        for reason in ("one reason", "another reason"):
            counters.add(name, reason=reason)
    interval = Interval()
    interval.take()
    return interval


def test_step_without_news(benchmark: Any, interval: Interval) -> None:
    assert benchmark(interval.take) is None


def test_step_with_offers_and_a_fetch(benchmark: Any, interval: Interval) -> None:
    def step() -> MarketStats | None:
        counters.add("blocks_offered", 8)
        counters.add("bytes_fetched", 1 << 20)
        return interval.take((0.001,))

    assert benchmark(step) is not None


def test_aggregating_two_sides(benchmark: Any) -> None:
    one = MarketStats({"counts": {name: 1 for name in NAMES}, "seconds": [0.001]})
    assert not benchmark(lambda: one.aggregate(one)).is_empty()
