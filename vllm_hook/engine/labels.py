"""What people call an engine: the model that it serves, and the port at which its server listens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kvmarket.registry.protocol.status import MAX_LABEL, Label

DEFAULT_PORT = 8000  # of `vllm serve`


def label_of(vllm_config: Any) -> Label:
    """The label of the engine of this process."""
    model = vllm_config.model_config
    served = getattr(model, "served_model_name", None)
    name = str((served[0] if isinstance(served, list) and served else served) or model.model)
    return Label(name[-MAX_LABEL:].encode(errors="replace").decode(), port_of(sys.argv))


def port_of(arguments: Sequence[str]) -> int:
    """The port that these arguments of a server name; that of `vllm serve` by default; 0 where they tell none.

    vLLM starts the process of an engine with the arguments of its server. A port in a file of settings is not seen.
    """
    for number, each in enumerate(arguments):
        option, _, value = each.partition("=")
        if option == "--port":
            value = value or next(iter(arguments[number + 1 :]), "")
            return int(value) if value.isascii() and value.isdigit() and int(value) <= 65535 else 0
    serves = "serve" in arguments[1:2] and not any(each.partition("=")[0] == "--config" for each in arguments)
    return DEFAULT_PORT if serves else 0
