"""The entry point of group ``vllm.general_plugins``: makes the connector known to vLLM by its name."""

from __future__ import annotations

import functools
import math
import os
import time

NAME = "KVMarketConnector"
_began = math.inf


@functools.cache
def register() -> None:
    """Register the connector with vLLM's factory, once per process; vLLM calls this in each before it loads a model."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    KVConnectorFactory.register_connector(NAME, "vllm_hook.connector", NAME)
    _begin()
    os.register_at_fork(after_in_child=_begin)


def began() -> float:
    """When vLLM began to work in this process (``time.time``); infinity where it has not loaded the plugin."""
    return _began


def _begin() -> None:
    global _began
    _began = time.time()
