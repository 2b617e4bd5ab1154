"""The KV connector for stock vLLM: `KVMarketConnector`, in connector.py.

It delegates to the scheduler's side (scheduler/side.py) and to each worker's side (worker/side.py), and guards vLLM
from what they raise (guard.py). What an engine is, and cannot do, is said in engine/; what its weights, code and
configuration are is looked up in identity/; what it counts is in metrics/.
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
