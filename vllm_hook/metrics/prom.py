"""Adds the statistics of engines to vLLM's ``/metrics`` page, in the process that serves the page.

metrics.py defines the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import REGISTRY, Counter, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics

from vllm_hook.metrics import metrics


class MarketProm(KVConnectorPromMetrics):  # type: ignore[misc]
    """The hook's metrics, made with vLLM's metric classes, so that they work with multiprocess pages and Ray as well.

    A page has one `MarketProm`: the next one in this process, which vLLM makes for its next engine, replaces it.
    """

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Mapping[type, Any],
        labelnames: Sequence[str],
        per_engine_labelvalues: Mapping[int, Sequence[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        _unregister()
        labels = {metric.name: ([metric.label] if metric.label else []) for metric in metrics.COUNTERS}
        labels[metrics.FALLBACKS] = list(metrics.FALLBACKS_LABELS)
        texts = {metric.name: metric.text for metric in metrics.COUNTERS} | {metrics.FALLBACKS: metrics.FALLBACKS_TEXT}
        self._counters = {
            name: metric_types[Counter](name=name, documentation=text, labelnames=[*labelnames, *labels[name]])
            for name, text in texts.items()
        }
        seconds = metric_types[Histogram](
            name=metrics.FETCH_SECONDS,
            documentation=metrics.FETCH_SECONDS_TEXT,
            labelnames=list(labelnames),
            buckets=list(metrics.FETCH_SECONDS_BUCKETS),
        )
        self._seconds = {engine: seconds.labels(*values) for engine, values in per_engine_labelvalues.items()}
        self._seen: dict[str, set[tuple[str, ...]]] = {name: set() for name in texts}
        for values in per_engine_labelvalues.values():  # metrics without a label of their own start at 0
            for name, counter in self._counters.items():
                if not labels[name]:
                    counter.labels(*values)

    def observe(self, transfer_stats_data: Mapping[str, Any], engine_idx: int = 0) -> None:
        """Add the statistics of one engine for an interval (`MarketStats.data`)."""
        values = self.per_engine_labelvalues[engine_idx]
        for name, labels, amount in metrics.samples(transfer_stats_data["counts"]):
            self._counters[name].labels(*values, *self._bounded(name, labels)).inc(amount)
        for seconds in transfer_stats_data["seconds"]:
            self._seconds[engine_idx].observe(seconds)

    def _bounded(self, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        """These label values, or `OTHER` for each when the metric has `MOST_REASONS` different ones already."""
        seen = self._seen[name]
        if labels not in seen:
            if len(seen) >= metrics.MOST_REASONS:
                return (metrics.OTHER,) * len(labels)
            seen.add(labels)
        return labels


def _unregister() -> None:
    """Remove the hook's metrics from the page. Before it makes new metrics vLLM removes its own, but not these."""
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("kvmarket_"):
            REGISTRY.unregister(collector)
