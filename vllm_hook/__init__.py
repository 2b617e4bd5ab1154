"""The KV connector for stock vLLM: `KVMarketConnector`, in connector.py.

It delegates to the scheduler side (scheduler/side.py) and to each worker's side (worker/side.py), and keeps their
exceptions away from vLLM (guard.py). engine/ describes an engine and refuses what it does not support; identity/
identifies the engine's weights, code and configuration; metrics/ reports its counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_hook.connector import KVMarketConnector

__all__ = ["KVMarketConnector"]


def __getattr__(name: str) -> Any:
    """Import the connector on first access: the plugin entry point must not import vLLM's connectors."""
    if name == "KVMarketConnector":
        from vllm_hook.connector import KVMarketConnector

        return KVMarketConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
