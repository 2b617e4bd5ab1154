"""The statistics that an engine's scheduler and workers give to vLLM's loggers each step: counts and fetch times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from kvmarket import counters
from vllm_hook.metrics import metrics


class MarketStats(KVConnectorStats):  # type: ignore[misc]
    """The counts of an interval. vLLM sends `data`: ``counts`` by key of `kvmarket.counters`, and ``seconds``.

    ``seconds`` has one element, in seconds, for each fetch that ended. `aggregate` costs some 5 us.
    """

    data: dict[str, Any]

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__({"counts": {}, "seconds": []} if data is None else data)

    def reset(self) -> None:
        """Empty counts and seconds."""
        self.data = {"counts": {}, "seconds": []}

    def is_empty(self) -> bool:
        """Whether there are neither counts nor seconds."""
        return not self.data["counts"] and not self.data["seconds"]

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """The sum of both, as a new object."""
        counts = dict(self.data["counts"])
        for key, amount in other.data["counts"].items():
            counts[key] = counts.get(key, 0) + amount
        return MarketStats({"counts": counts, "seconds": [*self.data["seconds"], *other.data["seconds"]]})

    def reduce(self) -> dict[str, int | float]:
        """The interval in a few figures, for the line "KV Transfer metrics" of vLLM's log."""
        counts, seconds = self.data["counts"], self.data["seconds"]
        return {
            "matched tokens": metrics.total(counts, ["vllm_tokens_asked"]),
            "imported tokens": metrics.total(counts, ["vllm_tokens_imported"]),
            "lost blocks": metrics.total(counts, ["vllm_blocks_lost"]),
            "fetched MB": round(metrics.total(counts, ["bytes_fetched"]) / 1e6, 1),
            "median fetch ms": round(1e3 * statistics.median(seconds), 2) if seconds else 0,
            "offered blocks": metrics.total(counts, ["blocks_offered"]),
            "retired blocks": metrics.total(counts, ["blocks_retired"]),
            "hook failures": metrics.total(counts, ["vllm_hook_failed"]),
        }


class Interval:
    """The increments of this process's counters since the last call of `take`.

    Scheduler and worker may share a process, so a process has one Interval (`OF_PROCESS`) and reports each count once.
    With several engines in one process, the one that asks first reports the counts of all.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def take(self, seconds: Sequence[float] = ()) -> MarketStats | None:
        """The counts since the last call, with the `seconds` of fetches that ended; None if both are empty.

        Costs some 1 us if nothing was counted, else some 5 us.
        """
        now, last = counters.snapshot(), self._last
        if now == last and not seconds:
            return None
        self._last = now
        gained = {key: amount - last.get(key, 0) for key, amount in now.items() if amount != last.get(key, 0)}
        return MarketStats({"counts": gained, "seconds": list(seconds)})


OF_PROCESS = Interval()
