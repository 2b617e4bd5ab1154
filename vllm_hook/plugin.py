"""The entry point of group ``vllm.general_plugins``: registers the connector with vLLM under its name.

The plugin also checks the connector's settings before an engine starts, records which files vLLM reads a model's
weights from, and makes process numbers differ between containers.
"""

from __future__ import annotations

import functools

from kvmarket.processes.numbers import scatter
from vllm_hook.engine import early
from vllm_hook.identity import loads

NAME = "KVMarketConnector"


@functools.cache
def register() -> None:
    """Register the connector with vLLM's factory, once per process. vLLM calls this in each process before a load."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    KVConnectorFactory.register_connector(NAME, "vllm_hook.connector", NAME)
    early.watch(KVConnectorFactory, NAME)
    loads.watch()
    scatter()
