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
    from kvmarket.layout import PagedCache
    from kvmarket.market import Market, connect
    from kvmarket.moved import Moved
    from kvmarket.offer import Hit

__version__ = "0.1.0"
__all__ = ["Fingerprint", "Hit", "KVMarketError", "Market", "Moved", "PagedCache", "connect", "errors", "registry"]

_HOMES = {
    "Fingerprint": "kvmarket.fingerprint",
    "Hit": "kvmarket.offer",
    "Market": "kvmarket.market",
    "Moved": "kvmarket.moved",
    "PagedCache": "kvmarket.layout",
    "connect": "kvmarket.market",
}


def __getattr__(name: str) -> Any:
    """Load a public name, or the subpackage `registry`, on first use."""
    if name == "registry":
        return import_module("kvmarket.registry")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kvmarket' has no attribute {name!r}")
