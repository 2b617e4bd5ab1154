"""What tells the contents of tensors apart: 64 bits for each MiB of each, taken where the tensors lie.

A piece is up to `PIECE_BYTES` bytes of one tensor, read as little-endian 32-bit words ``w[0], w[1], ...`` with zeros
behind the last byte. Its sum is ``sum(mixed(w[i] ^ key(i)) * key(i))`` mod 2**64, with the keys of checksum.py and a
bijection ``mixed`` of 32 bits. A change of one word is seen for certain, any other but for one in some 2**62. Without
`mixed`, words that differ by +1, -2, +1 side by side would have the sum of those they replace: weights hold indices and
masks, where that happens. It guards against other weights, not against forgers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from kvmarket.kernels.checksum import FIRST_KEY, KEY_STEP, UInt64s
from kvmarket.kernels.launch import is_interpreted

PIECE_BYTES = 1 << 20
MIXERS = (0x21F0AAAD, 0x735A2D97)  # odd, so that multiplying by them is a bijection
SHIFTS = (16, 15, 15)
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


def piece_sums_reference(data: npt.NDArray[np.uint8]) -> UInt64s:
    """Return the sums of the pieces of these bytes. Costs some 3 ns a word."""
    sums = []
    for start in range(0, len(data), PIECE_BYTES):
        piece = data[start : start + PIECE_BYTES]
        words = np.zeros(-(-len(piece) // 4), np.uint32)
        words.view(np.uint8)[: len(piece)] = piece
        keys = np.arange(len(words), dtype=np.uint32) * np.uint32(KEY_STEP) + np.uint32(FIRST_KEY)
        mixed = words ^ keys
        for shift, mixer in zip(SHIFTS, (*MIXERS, 1), strict=True):
            mixed ^= mixed >> np.uint32(shift)
            mixed *= np.uint32(mixer)
        sums.append(np.sum(mixed.astype(np.uint64) * keys.astype(np.uint64), dtype=np.uint64))
    return np.array(sums, np.uint64)


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
