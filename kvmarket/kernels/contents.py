"""Digests of tensors' contents, computed on the device that holds each tensor. On GPUs: sums of pieces, see pieces.py.

A digest names weights by what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import xxhash

from kvmarket.kernels.launch import is_interpreted

COPY_BYTES = 64 << 20  # of a tensor with gaps, this many bytes are copied at a time


def contents_of(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """Return for each tensor a digest: equal where bytes, shapes and strides of two tensors are equal.

    Takes strided tensors of any dtype, also with gaps, on any mix of devices. A tensor on a GPU is read there, at the
    speed of its memory, on the current stream; at the end the call waits once per GPU. On a CPU it costs 0.1 s a GB.
    CPU and GPU give different digests for the same bytes. A tensor with gaps is copied, 64 MiB at a time.
    """
    found = [b""] * len(tensors)
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    for device, indices in by_device.items():
        of_device = [tensors[index] for index in indices]
        hashed = _on_cpu if device.type == "cpu" and not is_interpreted() else _on_gpu
        for index, content in zip(indices, hashed(of_device), strict=True):
            found[index] = content
    return found


def spans_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield all bytes of a tensor as 1-D uint8 tensors without gaps, in an order that shape and strides determine.

    One view if the elements lie without gaps, in whatever order of the dimensions; else copies of up to 64 MiB, each
    made when it is yielded. Elements that a stride of 0 repeats come once.
    """
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return
    tensor = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]  # no repeats
    strides = tensor.stride()
    tensor = tensor.permute(sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim)))
    if tensor.is_contiguous():
        yield tensor.view(-1).view(torch.uint8)
        return
    slice_bytes = tensor.numel() // len(tensor) * tensor.element_size()
    if len(tensor) == 1 or slice_bytes > COPY_BYTES:
        for part in tensor:
            yield from spans_of(part)
    else:
        for part in tensor.split(max(1, COPY_BYTES // slice_bytes)):
            yield part.contiguous().view(-1).view(torch.uint8)


def _on_cpu(tensors: Iterable[torch.Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        digest = xxhash.xxh3_128()
        for span in spans_of(tensor):
            digest.update(span.numpy().data)
        yield digest.digest()


def _on_gpu(tensors: Sequence[torch.Tensor]) -> Iterator[bytes]:
    from kvmarket.kernels.piece_sums import PieceSums

    sums, pieces = PieceSums(tensors[0].device), []
    for tensor in tensors:
        count = 0
        for span in spans_of(tensor):
            count += sums.add(span)
            if span.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                sums.launch()  # read this copy now: its memory is freed for the next one
        pieces.append(count)
    found = sums.take()
    for end, count in zip(np.cumsum(pieces), pieces, strict=True):
        yield found[end - count : end].tobytes()
