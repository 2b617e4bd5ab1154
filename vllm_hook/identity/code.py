"""Code that decides what a model computes and is neither vLLM's nor a library's: named by its source."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash

from kvmarket.errors import FingerprintError

# Whose code goes with the version of vLLM, which counts.
_KNOWN = frozenset({"vllm", "torch", "transformers", "triton", "kvmarket", "vllm_hook"}) | sys.stdlib_module_names
_PARTS = ("quant_method", "scheme", "impl")  # of a layer: what computes with its weights


def code_of(model: torch.nn.Module, worker: object = None) -> str:
    """A digest of all code that is the operator's own; empty if there is none.

    That of the classes of the model's layers, of what computes with their weights, and of the worker, with the rest of
    the folder where that is a package: code that came with the weights (``trust_remote_code``), plugins,
    ``model_class_overrides``. Where it lies does not count. Raises FingerprintError if some has no source.
    """
    sources = sorted({_sources(kind) for kind in _classes(model, worker)})
    return xxhash.xxh3_128_hexdigest(repr(sources).encode()) if sources else ""


def _classes(model: torch.nn.Module, worker: object) -> Iterator[type[Any]]:
    """The classes that are not known, with those that they inherit from."""
    found: set[type[Any]] = set(type(worker).__mro__)
    for module in model.modules():
        found.update(type(module).__mro__)
        for part in _PARTS:
            found.update(type(getattr(module, part, None)).__mro__)
    return (kind for kind in found if kind.__module__.split(".")[0] not in _KNOWN)


def _sources(kind: type[Any]) -> tuple[tuple[str, str], ...]:
    """What the class's module was loaded from, and all else in the folder of its package: names and digests."""
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
