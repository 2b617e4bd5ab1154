"""Checks of the tensors that an engine passes as its paged cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from kvmarket.errors import LayoutError

LayerTensors: TypeAlias = torch.Tensor | Sequence[torch.Tensor]


def layer_groups(layer_tensors: Mapping[str, LayerTensors] | Sequence[LayerTensors]) -> list[list[torch.Tensor]]:
    """List the tensors of each layer: [tensor] or [K, V]. Raises LayoutError for anything else."""
    if isinstance(layer_tensors, torch.Tensor):
        raise LayoutError("one tensor instead of a list: pass tensor.unbind(layer_dim), one tensor per layer")
    layers = list(layer_tensors.values() if isinstance(layer_tensors, Mapping) else layer_tensors)
    if not layers:
        raise LayoutError("no layers: pass one tensor per layer, or (K, V)")
    groups = []
    for number, layer in enumerate(layers):
        group = [layer] if isinstance(layer, torch.Tensor) else list(layer)
        pair = isinstance(layer, torch.Tensor) or len(group) == 2
        if not pair or not all(isinstance(tensor, torch.Tensor) for tensor in group):
            raise LayoutError(f"layer {number} is neither a tensor nor a pair of them: pass one tensor, or (K, V)")
        groups.append(group)
    return groups


def check_tensors(tensors: list[torch.Tensor], slot_dim: int) -> None:
    """Raise LayoutError unless all tensors have one dtype, one device and one number of slots, and plain strides."""
    first = tensors[0]
    for number, tensor in enumerate(tensors):
        name = f"tensor {number}, {tensor.dtype} {tuple(tensor.shape)} on {tensor.device},"
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype.is_complex:
            raise LayoutError(f"{name} is sparse, quantized or complex: pass plain strided tensors")
        if tensor.device.type not in ("cpu", "cuda"):
            raise LayoutError(f"{name} cannot be shared: pass CPU or CUDA tensors")
        if not -tensor.ndim <= slot_dim < tensor.ndim:
            raise LayoutError(f"{name} has no dimension {slot_dim}: pass the slot_dim that counts blocks")
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise LayoutError(f"{name} differs from tensor 0, {first.dtype} on {first.device}: make one cache for each")
        if tensor.shape[slot_dim] != first.shape[slot_dim]:
            slots = (tensor.shape[slot_dim], first.shape[slot_dim])
            raise LayoutError(f"{name} has {slots[0]} slots and tensor 0 has {slots[1]}: check slot_dim={slot_dim}")
        if tensor.numel() == 0:
            raise LayoutError(f"{name} is empty: pass tensors that hold at least one block")
        if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise LayoutError(f"{name} is expanded (stride 0): pass the memory itself, or a .contiguous() copy")
