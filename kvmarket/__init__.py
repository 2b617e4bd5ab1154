"""kvmarket: every LLM-serving process of a node reuses the KV cache that any other has computed, GPU to GPU.

Names are loaded on first use, so that the registry's service and the command line start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvmarket import errors
from kvmarket.errors import KVMarketError

if TYPE_CHECKING:
    from kvmarket import registry
    from kvmarket.fingerprint import Fingerprint
    from kvmarket.layout.paged import PagedCache
    from kvmarket.market.facade import Market, connect
    from kvmarket.market.fetch import Fetch
    from kvmarket.market.offer import Hit

__version__ = "0.2.0"
__all__ = ["Fetch", "Fingerprint", "Hit", "KVMarketError", "Market", "PagedCache", "connect", "errors", "registry"]

_MODULES = {
    "Fingerprint": "kvmarket.fingerprint",
    "Hit": "kvmarket.market.offer",
    "Market": "kvmarket.market.facade",
    "Fetch": "kvmarket.market.fetch",
    "PagedCache": "kvmarket.layout.paged",
    "connect": "kvmarket.market.facade",
}


def __getattr__(name: str) -> Any:
    """Load a public name, or the subpackage `registry`, on first use."""
    if name == "registry":
        return import_module("kvmarket.registry")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'kvmarket' has no attribute {name!r}")
