"""What tells the contents of tensors apart: the sums of their pieces, taken where the tensors lie; see pieces.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import xxhash

from kvmarket.kernels.launch import is_interpreted

COPY_BYTES = 64 << 20  # of a tensor with gaps, at a time


def contents_of(tensors: Sequence[torch.Tensor]) -> list[bytes]:
    """Return for each tensor bytes that are equal where the tensors' bytes, shapes and strides are equal.

    Strided tensors of any dtype, also with gaps, on any mix of devices; whatever lies on a GPU is read there, at the
    speed of its memory, on the current stream, with one wait per GPU. On a CPU it costs 0.1 s a GB. What a GPU and a
    CPU say of the same bytes differs. A tensor with gaps costs a copy of it, 64 MiB at a time.
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
    """The bytes of a tensor as 1-D uint8 tensors without gaps, which together are all of them, in a fixed order.

    A view where its elements lie without gaps, in whatever order; else copies of up to 64 MiB, each made when it is
    asked for.
    """
    tensor = tensor.detach()
    if tensor.numel() == 0:
        return
    tensor = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]  # repeats
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
                sums.launch()  # a copy, whose memory is wanted for the next one
        pieces.append(count)
    found = sums.take()
    for end, count in zip(np.cumsum(pieces), pieces, strict=True):
        yield found[end - count : end].tobytes()
