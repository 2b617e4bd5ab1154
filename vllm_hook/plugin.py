"""The entry point of group ``vllm.general_plugins``: makes the connector known to vLLM by its name."""

from __future__ import annotations

import functools

from vllm_hook.identity import loads

NAME = "KVMarketConnector"


@functools.cache
def register() -> None:
    """Register the connector with vLLM's factory, once per process; vLLM calls this in each before it loads a model."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    KVConnectorFactory.register_connector(NAME, "vllm_hook.connector", NAME)
    loads.watch()
