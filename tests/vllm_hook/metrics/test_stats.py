"""From counters to vLLM's page: increments are told once, added over ranks and sides, and land under their names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from kvmarket import counters
from vllm_hook.connector import KVMarketConnector
from vllm_hook.metrics import metrics
from vllm_hook.metrics.prom import MarketProm
from vllm_hook.metrics.stats import Interval, MarketStats

ENGINES = {0: ["model", "0"], 1: ["model", "1"]}


@pytest.fixture
def prom() -> Iterator[MarketProm]:
    config = SimpleNamespace(kv_transfer_config=None)
    types = {Gauge: Gauge, Counter: Counter, Histogram: Histogram}
    made = [KVMarketConnector.build_prom_metrics(config, types, ["model_name", "engine"], ENGINES) for _ in range(2)]
    yield made[1]  # vLLM makes a second one for the next engine of a process
    for collector in {REGISTRY._names_to_collectors[name] for name in page_names()}:
        REGISTRY.unregister(collector)


def page_names() -> list[str]:
    return [name for name in REGISTRY._names_to_collectors if name in metrics.names()]


def value(name: str, engine: int = 0, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model_name": "model", "engine": str(engine), **labels})


def test_increments_are_told_once():
    interval = Interval()
    interval.take()
    assert interval.take() is None
    counters.add("test_a", 3)
    counters.add("test_a", 2)
    counters.add("test_b", reason="why")
    stats = interval.take([0.5])
    assert stats is not None and stats.data == {"counts": {"test_a": 5, "test_b{why}": 1}, "seconds": [0.5]}
    assert interval.take() is None
    counters.add("test_a")
    again = interval.take()
    assert again is not None and again.data["counts"] == {"test_a": 1}
    times = interval.take([0.1])
    assert times is not None and not times.is_empty()


def test_ranks_and_sides_are_added_and_travel():
    one = MarketStats({"counts": {"a": 1, "b": 2}, "seconds": [0.1]})
    two = pickle.loads(pickle.dumps(MarketStats({"counts": {"b": 3, "c": 4}, "seconds": [0.2]})))
    both = one.aggregate(two)
    assert both.data == {"counts": {"a": 1, "b": 5, "c": 4}, "seconds": [0.1, 0.2]}
    assert one.data["counts"] == {"a": 1, "b": 2}, "vLLM hands the same object to several loggers"
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(both.to_dict() if hasattr(both, "to_dict") else both.data))
    assert KVMarketConnector.build_kv_connector_stats(sent).data == both.data
    assert MarketStats().is_empty() and KVMarketConnector.build_kv_connector_stats().is_empty()
    both.reset()
    assert both.is_empty()


def test_the_log_line_sums_up():
    counts = {"vllm_tokens_asked": 96, "vllm_tokens_imported": 64, "bytes_fetched": 2_500_000, "vllm_blocks_lost{x}": 1}
    reduced = MarketStats({"counts": counts, "seconds": [0.001, 0.003]}).reduce()
    assert reduced["matched tokens"] == 96 and reduced["imported tokens"] == 64 and reduced["lost blocks"] == 1
    assert reduced["fetched MB"] == 2.5 and reduced["median fetch ms"] == 2.0
    assert MarketStats().reduce()["median fetch ms"] == 0


def test_counts_land_under_their_names(prom: MarketProm):
    counts = {
        "vllm_tokens_asked": 96,
        "vllm_tokens_imported": 64,
        "vllm_tokens_local": 32,
        "fetch_stale{a block was retired while it was being fetched}": 2,
        "fetch_failed{the copy failed: RuntimeError}": 1,
        "fetch_failed{the copy failed: OutOfMemoryError}": 1,
        "vllm_import_refused{LoRA}": 5,
        "service_lost{died}": 1,
        "no_reason_and_unknown": 7,
    }
    for _ in range(2):
        prom.observe({"counts": counts, "seconds": [0.003, 5.0]}, 1)
    assert value("kvmarket_matched_tokens_total", 1) == 192
    assert value("kvmarket_imported_tokens_total", 1) == 128
    assert value("kvmarket_hit_tokens_total", 1, source="own") == 64
    assert value("kvmarket_hit_tokens_total", 1, source="peers") == 128
    assert value("kvmarket_fetch_failures_total", 1, reason="retired during the copy") == 4
    assert value("kvmarket_fetch_failures_total", 1, reason="copy failed") == 4
    assert value("kvmarket_refused_imports_total", 1, reason="LoRA") == 10
    assert value("kvmarket_fallbacks_total", 1, kind="service_lost", reason="died") == 2
    assert value("kvmarket_fetch_seconds_count", 1) == 4 and value("kvmarket_fetch_seconds_bucket", 1, le="0.004") == 2
    assert value("kvmarket_matched_tokens_total", 0) == 0, "there from the start"
    assert b"no_reason_and_unknown" not in generate_latest()


def test_reasons_are_bounded(prom: MarketProm):
    for i in range(metrics.MOST_REASONS + 10):
        prom.observe({"counts": {f"vllm_import_refused{{{i}}}": 1}, "seconds": []})
    assert value("kvmarket_refused_imports_total", reason="0") == 1
    assert value("kvmarket_refused_imports_total", reason=metrics.OTHER) == 10


def test_names_follow_the_conventions(prom: MarketProm):
    assert sorted(page_names()) == sorted(metrics.names())
    assert all(metric.name.startswith("kvmarket_") and metric.name.endswith("_total") for metric in metrics.COUNTERS)
    assert metrics.FETCH_SECONDS.endswith("_seconds")
    assert all(metric.label or None in metric.counters.values() for metric in metrics.COUNTERS)
