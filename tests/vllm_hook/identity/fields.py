"""The configuration fields of the installed vLLM. It needs no pytest, so that any interpreter with vLLM can run it.

``python -m tests.vllm_hook.identity.fields`` prints the fields that are in neither list, `harmless` nor `counted`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Iterator

from vllm_hook.identity.counted import COUNTED
from vllm_hook.identity.harmless import HARMLESS

FEWEST = 200  # with fewer fields the search itself has failed


def walked() -> Iterator[tuple[str, str]]:
    """(class, name) of each field that `configuration` reaches, harmless ones included."""
    vllm = importlib.import_module("vllm.config")
    classes = {}
    for found in pkgutil.iter_modules(vllm.__path__):
        for kind in vars(importlib.import_module(f"vllm.config.{found.name}")).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__.startswith("vllm.config"):
                classes[kind.__name__] = kind
    waiting, seen = ["VllmConfig"], set()
    while waiting:
        if (name := waiting.pop()) in seen:
            continue
        seen.add(name)
        for field in dataclasses.fields(classes[name]):
            yield name, field.name
            if field.name not in HARMLESS.get(name, ()):
                waiting += [other for other in classes if other in str(field.type)]


def not_looked_at() -> list[str]:
    """The fields in neither list; they count in the fingerprint."""
    fields = list(walked())
    if len(fields) < FEWEST:
        raise LookupError(f"only {len(fields)} fields were found")
    return [f"{kind}.{name}" for kind, name in fields if name not in {*HARMLESS.get(kind, ()), *COUNTED.get(kind, ())}]


if __name__ == "__main__":
    sys.stdout.write("".join(f"NEW {field}\n" for field in not_looked_at()))
