"""The KV connector for stock vLLM: `KVMarketConnector`.

Scheduler side: scheduler.py (tracks.py, outputs.py, steps.py, imports.py, drafts.py, waits.py, prefill_rate.py,
reuse.py, chores.py); worker side: worker.py (pages.py). connector.py delegates to them, guarded by guard.py. facts.py
says what must agree, identity/ looks it up; limits.py what is refused, compat.py what differs between versions. An
engine joins the market when it can (joining.py), and anew when its weights change (changes.py hears of it, weights.py
names them): rejoin.py.
summary.py is the line in the log, metrics.py what is on vLLM's page, which stats.py collects and prom.py registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_hook.connector import KVMarketConnector

__all__ = ["KVMarketConnector"]


def __getattr__(name: str) -> Any:
    """Import the connector when it is asked for: the plugin entry point must not pull in vLLM's connectors."""
    if name == "KVMarketConnector":
        from vllm_hook.connector import KVMarketConnector

        return KVMarketConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
