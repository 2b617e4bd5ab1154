"""What tells the contents of tensors apart: every byte, its place, and the form of the tensor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kvmarket.kernels import contents
from kvmarket.kernels.contents import contents_of, spans_of
from kvmarket.kernels.pieces import PIECE_BYTES, piece_sums_reference
from tests.kernels.conftest import CUDA

BF16, INT32, UINT8 = torch.bfloat16, torch.int32, torch.uint8


def random_bytes(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count,), dtype=UINT8, generator=torch.Generator().manual_seed(seed))


def sums_of(*spans: torch.Tensor) -> np.ndarray:
    from kvmarket.kernels.piece_sums import PieceSums

    sums = PieceSums(spans[0].device)
    counts = [sums.add(span) for span in spans]
    found = sums.take()
    assert sum(counts) == len(found)
    return found


@pytest.mark.parametrize("skipped", [0, 1, 4, 16])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 17, 64, 70_001, PIECE_BYTES, 2 * PIECE_BYTES + 5])
def test_kernel_and_reference_agree(device: str, length: int, skipped: int):
    data = random_bytes(length + skipped)[skipped:]
    assert np.array_equal(sums_of(data.to(device)), piece_sums_reference(data.numpy()))


def test_spans_of_any_alignment_are_summed_in_the_order_in_which_they_were_added(device: str):
    data = random_bytes(4 * PIECE_BYTES).to(device)
    spans = [data[1:40], data[16 : 16 + PIECE_BYTES + 100], data[:0], data[3:3_000], data[32:64]]
    expected = [piece_sums_reference(span.cpu().numpy()) for span in spans]
    assert np.array_equal(sums_of(*spans), np.concatenate(expected))


def test_every_byte_of_a_piece_counts_and_so_does_its_place():
    data = random_bytes(41).numpy()
    others = [data] + [np.where(np.arange(41) == at, data ^ 1, data) for at in range(41)] + [np.roll(data, 4)]
    assert len({piece_sums_reference(each).tobytes() for each in others}) == len(others)


@pytest.mark.parametrize(
    "values",
    [list(itertools.permutations(range(7))), list(itertools.product((0, 1), repeat=12))],
    ids=["indices", "masks"],
)
def test_small_numbers_in_another_order_are_told_apart(values: list[tuple[int, ...]]):
    """A sum of words times keys that grow evenly takes thousands of them for the same."""
    words = [np.array(each, np.int32).view(np.uint8) for each in values]
    assert len({piece_sums_reference(each).tobytes() for each in words}) == len(words)


def forms(base: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of a (16, 64) one: without gaps, transposed, with gaps in its columns and rows, repeated."""
    wide = base.repeat(1, 2).contiguous()
    return [base, base.t(), wide[:, :64], base[::2], base[:, 3:60:2], base[:1].expand(5, 64), base.view(4, 4, 64)[:, 1]]


def test_spans_are_all_bytes_of_a_tensor_once():
    base = random_bytes(16 * 64 * 2).view(BF16).view(16, 64)
    for tensor in forms(base):
        spans = [span.clone() for span in spans_of(tensor)]
        dense = tensor[:1] if 0 in tensor.stride() else tensor
        assert torch.equal(torch.cat(spans).sort().values, dense.contiguous().view(-1).view(UINT8).sort().values)
        assert all(span.is_contiguous() for span in spans)


def test_tensors_with_gaps_are_copied_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "COPY_BYTES", 1000)
    base = random_bytes(20 * 40 * 60).view(20, 40, 60)
    spans = list(spans_of(base[:, :, :50]))  # 2,000 bytes a slice
    assert max(map(len, spans)) <= 1000 and torch.equal(torch.cat(spans), base[:, :, :50].reshape(-1))


def test_contents_say_what_a_tensor_holds_whatever_is_around_it(device: str):
    base = random_bytes(16 * 64 * 2).view(BF16).view(16, 64).to(device)
    tensors = [*forms(base), base[:0], torch.tensor(3, device=device), base.view(INT32), base.flatten()[1:]]
    found, again = contents_of(tensors), contents_of([tensor.clone() for tensor in tensors])
    assert found[0] == again[0] and found[7] == again[7] and found[8] == again[8]
    for at, tensor in enumerate(tensors):
        if tensor.numel():
            changed = tensor.clone() if 0 not in tensor.stride() else tensor[:1].clone().expand(5, 64)
            before = contents_of([changed])[0]
            changed[(-1,) * changed.ndim] = 7
            assert contents_of([changed])[0] != before, at


@pytest.mark.gpu
@pytest.mark.parametrize("device", [CUDA])
def test_more_than_two_to_the_31_elements(device: str):
    large = torch.zeros(2**31 + 12_345, dtype=torch.int8, device=device)
    (empty,) = contents_of([large])
    seen = {empty}
    for at in (0, 2**31 - 1, 2**31, len(large) - 1):
        large[at] = 1
        seen.add(contents_of([large])[0])
        large[at] = 0
    assert len(seen) == 5 and contents_of([large]) == [empty]
