"""A digest of the operator's own code that decides what a model computes: code of neither vLLM nor its libraries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash

from kvmarket.errors import FingerprintError

# Packages whose code is left out: the version of vLLM, which counts, stands for it.
_KNOWN = frozenset({"vllm", "torch", "transformers", "triton", "kvmarket", "vllm_hook"}) | sys.stdlib_module_names
_PARTS = ("quant_method", "scheme", "impl")  # attributes of a layer: objects that compute with its weights


def code_of(model: torch.nn.Module, worker: object = None) -> str:
    """A digest of all the operator's own code; empty if there is none.

    It covers the classes of the model's layers, of the objects that compute with their weights, and of the worker:
    code from ``trust_remote_code``, plugins, ``model_class_overrides``. For a class in a package it covers all Python
    files below the folder of the class's module. Paths do not count. Raises FingerprintError for code without a file.
    """
    sources = sorted({_sources(kind) for kind in _classes(model, worker)})
    return xxhash.xxh3_128_hexdigest(repr(sources).encode()) if sources else ""


def _classes(model: torch.nn.Module, worker: object) -> Iterator[type[Any]]:
    """The operator's own classes among those of model and worker, base classes included."""
    found: set[type[Any]] = set(type(worker).__mro__)
    for module in model.modules():
        found.update(type(module).__mro__)
        for part in _PARTS:
            found.update(type(getattr(module, part, None)).__mro__)
    return (kind for kind in found if kind.__module__.split(".")[0] not in _KNOWN)


def _sources(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    """(name, digest) of the file of the class's module, and of all Python files below its folder if in a package."""
    module = sys.modules.get(kind.__module__)
    try:
        file = Path(str(getattr(module, "__file__", None)))
        if not getattr(module, "__package__", None):
            return ((file.suffix, _digest(file)),)
        files = {file, *file.parent.rglob("*.py")}
        return tuple(sorted((str(each.relative_to(file.parent)), _digest(each)) for each in files))
    except OSError as error:
        raise FingerprintError(
            f"the code of {kind.__module__}.{kind.__qualname__}, which the model uses, cannot be read; put it in a file"
        ) from error


def _digest(file: Path) -> str:
    return xxhash.xxh3_128_hexdigest(file.read_bytes())
