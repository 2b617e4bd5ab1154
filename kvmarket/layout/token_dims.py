"""Check which dimension of a cache's tensors counts the tokens of a block; refuse shapes that do not tell.

Blocks of two engines may have equal shapes with different meanings, [token][head] and [head][token] say; these engines
must not share. So where the shapes alone do not tell the dimension, the caller must name it before a cache is shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kvmarket.errors import LayoutError


def check_token_dim(tensors: Sequence[torch.Tensor], block_size: int, slot_dim: int, token_dim: int) -> None:
    """Raise LayoutError unless `token_dim` of every tensor exists, is not `slot_dim`, and has `block_size` elements."""
    for number, tensor in enumerate(tensors):
        name = f"tensor {number}, {tuple(tensor.shape)},"
        if not -tensor.ndim <= token_dim < tensor.ndim or token_dim % tensor.ndim == slot_dim % tensor.ndim:
            raise LayoutError(f"{name} has no dimension {token_dim} beside its slots: pass the token_dim of a block")
        if tensor.shape[token_dim] != block_size:
            raise LayoutError(
                f"{name} has {tensor.shape[token_dim]} in dimension {token_dim}, not block_size={block_size}: pass the "
                "token_dim that counts a block's tokens"
            )


def open_dims(shape: tuple[int, ...], block_size: int, pair: bool) -> tuple[int, ...]:
    """The dimensions of a layer's block that may count its tokens. More than one: the shape does not tell.

    `shape` has no slot dimension and no dimension of size 1. `pair`: K and V are separate tensors. The dimensions with
    `block_size` elements may count tokens; none does if `block_size` is 1. If they are several and the last dimension
    of `shape` is one of them, it is left out: it holds the elements of a head. If they are still several, `block_size`
    is 2 and `pair` is false, a first dimension of size 2 is left out: it holds K and V.
    """
    found = [dim for dim, size in enumerate(shape) if size == block_size > 1]
    if len(found) > 1 and found[-1] == len(shape) - 1:
        found.pop()
    if len(found) > 1 and block_size == 2 and found[0] == 0 and not pair:
        found.pop(0)
    return tuple(found)


def named_dims(
    groups: Sequence[Sequence[torch.Tensor]], block_size: int, slot_dim: int, token_dim: int
) -> tuple[int, ...]:
    """For each layer of the layout, where `token_dim` is in its logical shape.

    Empty if the shapes of all layers tell it, or if `block_size` is 1: then an engine that names it and an engine that
    does not can still share.
    """
    if block_size == 1:
        return ()
    named: list[int] = []
    is_open = False
    for group in groups:
        shapes, places, pair = [], [], len(group) == 2
        for tensor in group:
            kept = [dim for dim, size in enumerate(tensor.shape) if dim != slot_dim % tensor.ndim and size > 1]
            shapes.append(tuple(tensor.shape[dim] for dim in kept))
            places.append(kept.index(token_dim % tensor.ndim))
            is_open |= len(open_dims(shapes[-1], block_size, pair)) > 1
        named += [places[0] + 1] if pair and shapes[0] == shapes[1] else places
    return tuple(named) if is_open else ()


def check_shape(shape: tuple[int, ...], block_size: int, pair: bool) -> None:
    """Raise LayoutError if `shape` does not tell which dimension counts the tokens, or has no room for them.

    It does not tell if `open_dims` finds several. It has no room if no dimension is a multiple of `block_size` and no
    product of neighbouring dimensions equals it; a dimension that holds K and V does not count. `shape` and `pair` as
    for `open_dims`. A shape of one dimension always passes.
    """
    found = open_dims(shape, block_size, pair)
    if len(found) > 1:
        raise LayoutError(
            f"blocks of shape {list(shape)} have several dimensions of {block_size}, and engines of one fingerprint "
            "must agree which of them counts the tokens: name it, PagedCache(..., token_dim=...), by its place in the "
            "tensors"
        )
    apart = shape[1:] if not pair and len(shape) > 2 and shape[0] == 2 else shape
    if found or len(apart) < 2 or any(size % block_size == 0 for size in apart):
        return
    cuts = [(start, end) for start in range(len(apart)) for end in range(start + 2, len(apart) + 1)]
    if not any(math.prod(apart[start:end]) == block_size for start, end in cuts):
        raise LayoutError(
            f"blocks of shape {list(shape)} cannot hold block_size={block_size} tokens: pass the number of tokens that "
            "a slot of the tensors holds, about which engines of one fingerprint must agree"
        )
