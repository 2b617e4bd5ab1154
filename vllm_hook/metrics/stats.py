"""What an engine's scheduler and workers tell vLLM's loggers of each step: counts since the last time, and times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from kvmarket import counters
from vllm_hook.metrics import metrics


class MarketStats(KVConnectorStats):  # type: ignore[misc]
    """Increments of an interval; `data` is what travels: ``counts`` by key of `kvmarket.counters`, ``seconds``.

    ``seconds`` has one element for each fetch that ended. Adding two costs some 5 us.
    """

    data: dict[str, Any]

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__({"counts": {}, "seconds": []} if data is None else data)

    def reset(self) -> None:
        """Forget what was told."""
        self.data = {"counts": {}, "seconds": []}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.data["counts"] and not self.data["seconds"]

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Both together; neither changes."""
        counts = dict(self.data["counts"])
        for key, amount in other.data["counts"].items():
            counts[key] = counts.get(key, 0) + amount
        return MarketStats({"counts": counts, "seconds": [*self.data["seconds"], *other.data["seconds"]]})

    def reduce(self) -> dict[str, int | float]:
        """The interval in a few figures, for vLLM's line "KV Transfer metrics"."""
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
    """What the counters of this process have gained since somebody last asked.

    Scheduler and worker may be one process: there is one Interval for all (`OF_PROCESS`), so nothing is told twice. Of
    several engines in one process, whoever asks first tells what was counted.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def take(self, seconds: Sequence[float] = ()) -> MarketStats | None:
        """What has been counted since the last call, with the seconds of the fetches that ended; None for nothing.

        Costs some 1 us where nothing has been counted, else some 5.
        """
        now, last = counters.snapshot(), self._last
        if now == last and not seconds:
            return None
        self._last = now
        gained = {key: amount - last.get(key, 0) for key, amount in now.items() if amount != last.get(key, 0)}
        return MarketStats({"counts": gained, "seconds": list(seconds)})


OF_PROCESS = Interval()
