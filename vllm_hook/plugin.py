"""The entry point of group ``vllm.general_plugins``: makes the connector known to vLLM by its name.

With it wrong settings stop an engine as its configuration is made, what vLLM reads a model's weights from is seen, and
in containers engines get process numbers that differ.
"""

from __future__ import annotations

import functools

from kvmarket.processes.numbers import scatter
from vllm_hook.engine import early
from vllm_hook.identity import loads

NAME = "KVMarketConnector"


@functools.cache
def register() -> None:
    """Register the connector with vLLM's factory, once per process; vLLM calls this in each before it loads a model."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    KVConnectorFactory.register_connector(NAME, "vllm_hook.connector", NAME)
    early.watch(KVConnectorFactory, NAME)
    loads.watch()
    scatter()
