"""vLLM's configuration as plain values, which are equal in every process for engines that compute the same KV."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from kvmarket.errors import FingerprintError
from vllm_hook.identity.harmless import HARMLESS
from vllm_hook.scheduler.drafts import WITHOUT_KV

# Fields left out of a model's own configuration, at any depth: they say where it came from. Code counts by its source.
_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash", "auto_map")
_DEEPEST = 20  # levels of nesting


def configuration(vllm_config: Any) -> object:
    """Everything in a configuration that may change a byte of the KV cache: all fields but those in `harmless`.

    Costs some ms. Raises FingerprintError for a value that has no description that is the same in every process.
    """
    found = described(vllm_config)
    model, speculative = vllm_config.model_config, getattr(vllm_config, "speculative_config", None)
    assert isinstance(found, dict)
    if speculative is not None and speculative.method in WITHOUT_KV:
        found["speculative_config"] = None  # such a drafter writes no KV
    if "longrope" in repr(found.get("model_config")):
        found["max_model_len"] = model.max_model_len  # decides whether vLLM takes the long or the short factors
    return found


def described(value: object, where: str = "vllm_config", depth: int = 0) -> object:
    """Describe one value by its content, as nested lists and mappings of plain values; errors name it `where`."""
    if value is None or isinstance(value, bool | int | str | bytes):
        return value.name if isinstance(value, Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if depth > _DEEPEST:
        raise FingerprintError(f"{where} refers to itself; give a configuration that can be written down")
    if isinstance(value, Mapping):
        return {str(key): described(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item, where, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((described(item, where, depth + 1) for item in value), key=repr)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if callable(to_dict := getattr(value, "to_dict", None)):
        return _without_origin(described(to_dict(), where, depth + 1))
    return _fields(value, where, depth)


def _fields(value: object, where: str, depth: int) -> object:
    """Describe an object by its declared fields (of a dataclass) or its ``__dict__``, without harmless fields."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__"):
        names = list(vars(value))
    else:
        raise FingerprintError(
            f"{where} is a {type(value).__name__}, which cannot be told from others; give plain values there"
        )
    harmless = {name for kind in type(value).__mro__ for name in HARMLESS.get(kind.__name__, ())}
    found = {
        name: described(getattr(value, name), f"{where}.{name}", depth + 1) for name in names if name not in harmless
    }
    return {"": type(value).__name__, **found}


def _without_origin(content: object) -> object:
    """The content of a model's configuration without the fields in `_VOLATILE`."""
    if isinstance(content, dict):
        return {key: _without_origin(item) for key, item in content.items() if key not in _VOLATILE}
    return [_without_origin(item) for item in content] if isinstance(content, list) else content
