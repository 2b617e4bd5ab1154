"""Which tensors of a model are its weights, and the checksum of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
import xxhash
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kvmarket.kernels.contents import contents_of

# Attributes that are no weights: a step's results, adapters, the KV cache, or the address of a packed copy that the CPU
# build makes (it keeps the weight itself, or an empty one). Parameters and buffers count under any name.
_SCRATCH = re.compile(
    r"^_?kv_cache$|^cpu_linear$|^lora_|_stacked$"
    r"|(^|_)(workspace|scratch|buf|buffer|locks?|indices|stream)s?(_ptrs?|_cpu|_gpu)?$"
    r"|^(positions|hidden_states|per_layer_inputs|per_layer_embeddings|token_context|expert_load_view|adapter_mapping)$"
)
_CLOSED = ("torch", "transformers", "vllm.compilation", "vllm.config", "vllm.distributed", "vllm.lora", "vllm.v1")
_OF_TORCH = ("_parameters", "_buffers", "_modules")
_LEAVES = frozenset({str, int, float, bool, bytes, type(None), torch.dtype, torch.device, torch.Size})
_DEEPEST = 8


def checksum_of(model: torch.nn.Module) -> str:
    """A 128-bit checksum of all weights of a model, with names, dtypes, shapes and strides; empty if some are hidden.

    vLLM's CPU build hides the weights of linear layers: it packs them into memory that no tensor shows. Costs one read
    of all weights, at the speed of the device's memory, and one wait for the device.
    """
    tensors = tensors_of(model)
    if any(_hidden(name, tensor) for name, tensor in tensors.items()):
        return ""
    names = sorted(tensors)
    facts = [(name, *_facts(tensors[name])) for name in names]
    digest = xxhash.xxh3_128(repr(facts).encode())
    for content in contents_of([tensors[name] for name in names]):
        digest.update(content)
    return digest.hexdigest()


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a model by name: parameters, buffers, and tensors in other attributes of its modules.

    The KV cache and the scratch memory of steps are left out, by the names in `_SCRATCH`.
    """
    registered = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = {part: tensor for name, whole in registered.items() for part, tensor in _plain(name, whole)}
    kept = {id(tensor) for tensor in found.values()}
    holders = [(name, vars(tensor)) for name, tensor in registered.items()]  # for example scales of bitsandbytes
    for prefix, module in model.named_modules():
        holders.append((prefix, {name: value for name, value in vars(module).items() if name not in _OF_TORCH}))
    for prefix, values in holders:
        for name, tensor in _inside(values, prefix, set(), 0):
            if id(tensor) not in kept:
                found[f"{name} beside them"] = tensor
    return found


def _inside(value: object, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in an attribute of a module: the value itself, or those in objects that it refers to."""
    if isinstance(value, torch.Tensor):
        yield from _plain(name, value)
        return
    if type(value) in _LEAVES or depth > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in _items(value):
        if not _SCRATCH.search(key):
            yield from _inside(item, f"{name}.{key}", seen, depth + 1)


def _items(value: object) -> Iterable[tuple[str, Any]]:
    """The objects that an object refers to, by name; empty for types that hold no weights of the module."""
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(str(number), item) for number, item in enumerate(value)]
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        return [(name, cell.cell_contents) for name, cell in cells if _filled(cell)]
    if isinstance(value, type | ModuleType | torch.nn.Module) or type(value).__module__.startswith(_CLOSED):
        return ()
    slots = [(name, getattr(value, name, None)) for name in getattr(type(value), "__slots__", ())]
    return [*slots, *getattr(value, "__dict__", {}).items()]


def _filled(cell: Any) -> bool:
    """Whether a closure's cell has a value."""
    try:
        cell.cell_contents  # noqa: B018 - it raises where there is none
    except ValueError:
        return False
    return True


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor itself, or the tensors that a composite one is made of, with their names."""
    partitions = getattr(tensor, "partitions", None)
    if isinstance(partitions, Mapping):  # vLLM's SharedWeightParameter
        for key, part in partitions.items():
            yield from _plain(f"{name}.{key}", part)
    elif is_traceable_wrapper_subclass(tensor):  # torchao's
        for key in tensor.__tensor_flatten__()[0]:
            yield from _plain(f"{name}.{key}", getattr(tensor, key))
    else:
        yield name, tensor


def _hidden(name: str, tensor: torch.Tensor) -> bool:
    """Whether the tensor stands for weights whose bytes cannot be read."""
    empty = name.endswith("weight") and tensor.numel() == 0
    return empty or tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized


def _facts(tensor: torch.Tensor) -> tuple[object, ...]:
    return str(tensor.dtype), tensor.device.type, tuple(tensor.shape), tensor.stride()
