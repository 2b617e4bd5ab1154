"""The metrics that the hook adds to vLLM's ``/metrics`` page: names, texts, and the counters that each one sums.

Names, labels and units are stable. The values come from `kvmarket.counters` in an engine's scheduler and workers;
counts of workers are summed over the ranks of an engine. A fallback without a metric of its own is counted in
`kvmarket_fallbacks_total`, so that every fallback is on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple


class CounterMetric(NamedTuple):
    """A metric that only grows; `counters` are those that it sums, each with its label value (None: the reason)."""

    name: str
    text: str
    counters: Mapping[str, str | None]
    label: str = ""


COUNTERS = (
    CounterMetric(
        "kvmarket_matched_tokens_total",
        "Prompt tokens that peers held beyond the own prefix cache, and that were asked for.",
        {"vllm_tokens_asked": None},
    ),
    CounterMetric(
        "kvmarket_imported_tokens_total",
        "Of the matched tokens those that came; the others were computed.",
        {"vllm_tokens_imported": None},
    ),
    CounterMetric(
        "kvmarket_hit_tokens_total",
        "Prompt tokens that were not computed, by where their KV was: own (prefix cache) or peers.",
        {"vllm_tokens_local": "own", "vllm_tokens_imported": "peers"},
        "source",
    ),
    CounterMetric(
        "kvmarket_fetched_blocks_total", "Blocks fetched from peers, by every rank.", {"blocks_fetched": None}
    ),
    CounterMetric(
        "kvmarket_fetched_blocks_from_lenders_total",
        "Of the fetched blocks those that a lender kept (`kvmarket lend`), by every rank.",
        {"blocks_fetched_from_lenders": None},
    ),
    CounterMetric(
        "kvmarket_fetched_bytes_total", "Bytes of the blocks fetched from peers, by all ranks.", {"bytes_fetched": None}
    ),
    CounterMetric(
        "kvmarket_lost_blocks_total",
        "Blocks asked for that did not come and were computed, by reason, of every rank.",
        {"vllm_blocks_lost": None},
        "reason",
    ),
    CounterMetric(
        "kvmarket_fetch_failures_total",
        "Blocks retired before or during their copy, blocks with a wrong checksum, failed copies, pools out of reach.",
        {
            "fetch_cut": "retired before the copy",
            "fetch_stale": "retired during the copy",
            "fetch_corrupt": "wrong checksum",
            "fetch_failed": "copy failed",
            "pool_unreachable": "pool unreachable",
        },
        "reason",
    ),
    CounterMetric("kvmarket_offered_blocks_total", "Blocks offered to peers.", {"blocks_offered": None}),
    CounterMetric(
        "kvmarket_dropped_offers_total",
        "Blocks that were retired, or could not be packed, before they were offered, by reason.",
        {"offer_dropped": None},
        "reason",
    ),
    CounterMetric(
        "kvmarket_retired_blocks_total",
        "Blocks on offer that were taken down because their pages were reused.",
        {"blocks_retired": None},
    ),
    CounterMetric(
        "kvmarket_invalidations_total",
        "How often all offers of the engine were killed at once, by reason (a reset of the prefix cache, say).",
        {"failed_closed": None},
        "reason",
    ),
    CounterMetric(
        "kvmarket_hook_failures_total",
        "Exceptions in the connector that were caught, by hook and type.",
        {"vllm_hook_failed": None},
        "reason",
    ),
    CounterMetric(
        "kvmarket_waited_requests_total",
        "Requests that waited for a peer that was computing their prompt.",
        {"vllm_requests_waited": None},
    ),
    CounterMetric(
        "kvmarket_refused_imports_total",
        "Requests that were not looked up at the market, by reason.",
        {"vllm_import_refused": None},
        "reason",
    ),
)
FETCH_SECONDS = "kvmarket_fetch_seconds"
FETCH_SECONDS_TEXT = "From the start of a fetch until the engine saw that it was done, of every rank."
FETCH_SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0)
FALLBACKS = "kvmarket_fallbacks_total"
FALLBACKS_TEXT = "Every other fallback, by kind (its name) and reason."
FALLBACKS_LABELS = ("kind", "reason")

MOST_REASONS = 50  # different label values of one metric; further ones count as OTHER, which bounds the page
OTHER = "other"
_CLAIMED = frozenset(name for metric in COUNTERS for name in metric.counters)


class Sample(NamedTuple):
    """An `amount` to add to the metric `name` with these label values."""

    name: str
    labels: tuple[str, ...]
    amount: int


def names() -> list[str]:
    """The names of all metrics on the page; for the histogram its base name."""
    return [*(metric.name for metric in COUNTERS), FETCH_SECONDS, FALLBACKS]


def samples(counts: Mapping[str, int]) -> Iterator[Sample]:
    """The samples for these counts of `kvmarket.counters`, whose keys are ``name`` or ``name{reason}``."""
    found = [(*_split(key), amount) for key, amount in counts.items()]
    for metric in COUNTERS:
        for name, reason, amount in found:
            if name in metric.counters:
                labels = (metric.counters[name] or reason,) if metric.label else ()
                yield Sample(metric.name, labels, amount)
    for name, reason, amount in found:
        if reason and name not in _CLAIMED:
            yield Sample(FALLBACKS, (name, reason), amount)


def total(counts: Mapping[str, int], names: Iterable[str]) -> int:
    """The sum of these counters, over all their reasons."""
    wanted = frozenset(names)
    return sum(amount for key, amount in counts.items() if _split(key)[0] in wanted)


def _split(key: str) -> tuple[str, str]:
    """(name, reason) of a counter's key; the reason may be empty."""
    name, _, reason = key.partition("{")
    return name, reason[:-1]
