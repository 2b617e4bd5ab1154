"""Ranges of flags, and the checksums of a part of a hit."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket.lend.parts import checksums_of, runs_of
from kvmarket.market.offer import Hit, Offers


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        ([False], []),
        ([True, True], [(0, 2)]),
        ([True, False, True, True, False, False, True], [(0, 1), (2, 4), (6, 7)]),
        ([False, True, False], [(1, 2)]),
    ],
)
def test_ranges_of_true_flags(flags: list[bool], expected: list[tuple[int, int]]):
    assert list(runs_of(flags)) == expected


def run(count: int, *sums: int) -> Offers:
    ones = np.ones(count, np.uint64)
    return Offers("p", 1, np.arange(count), ones, np.array(sums, np.uint64) if sums else None)


def test_blocks_without_a_checksum_have_zero():
    hit = Hit(0, 5, 0, (run(2, 7, 8), run(3)), {})
    found = checksums_of(hit, 1, 3)
    assert found is not None and found.tolist() == [8, 0, 0] and found.dtype == np.uint64
    assert checksums_of(hit, 2, 3) is None, "none is known"
