"""What counts as tokens, and what is refused."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from kvmarket.errors import TokenError
from kvmarket.registry.trie import tokens


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(tokens, optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    "given",
    [
        [1, 2, 3, 4],
        (1, 2, 3, 4),
        range(1, 5),
        [np.int64(1), np.int32(2), 3, 4],
        np.array([1, 2, 3, 4], np.int32),
        np.array([1, 2, 3, 4], np.int64),
        np.array([1, 2, 3, 4], np.uint8),
        np.array([1, 2, 3, 4], ">i4"),
        np.array([1, 9, 2, 9, 3, 9, 4], np.int32)[::2],
        memoryview(np.array([1, 2, 3, 4], np.int32)),
    ],
)
def test_tokens_of_any_integer_kind(given):
    array = tokens.as_tokens(given)
    assert array.dtype == np.int32 and array.dtype.isnative and array.flags.c_contiguous
    assert array.tolist() == [1, 2, 3, 4]


def test_tokens_of_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.int32, torch.int64, torch.int16):
        assert tokens.as_tokens(torch.tensor([3, -4], dtype=dtype)).tolist() == [3, -4]
    for wrong in (torch.tensor([1.0]), torch.tensor([True]), torch.tensor([[1]]), torch.tensor([2**31])):
        with pytest.raises(TokenError):
            tokens.as_tokens(wrong)


def test_int32_arrays_are_not_copied():
    array = np.arange(8, dtype=np.int32)
    assert tokens.as_tokens(array) is array
