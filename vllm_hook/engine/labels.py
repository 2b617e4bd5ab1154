"""The label under which an engine is shown to people: its model's name, and the port of its server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kvmarket.registry.protocol.status import MAX_LABEL, Label

DEFAULT_PORT = 8000  # of `vllm serve`


def label_of(vllm_config: Any) -> Label:
    """The label of this process's engine; a long model name keeps its last `MAX_LABEL` characters."""
    model = vllm_config.model_config
    served = getattr(model, "served_model_name", None)
    name = str((served[0] if isinstance(served, list) and served else served) or model.model)
    return Label(name[-MAX_LABEL:].encode(errors="replace").decode(), port_of(sys.argv))


def port_of(arguments: Sequence[str]) -> int:
    """The port in these command-line arguments of a server; 8000 for `vllm serve` without ``--port``; 0 if unknown.

    vLLM starts an engine's process with its server's arguments. A port in a ``--config`` file is not found.
    """
    for number, each in enumerate(arguments):
        option, _, value = each.partition("=")
        if option == "--port":
            value = value or next(iter(arguments[number + 1 :]), "")
            return int(value) if value.isascii() and value.isdigit() and int(value) <= 65535 else 0
    serves = "serve" in arguments[1:2] and not any(each.partition("=")[0] == "--config" for each in arguments)
    return DEFAULT_PORT if serves else 0
