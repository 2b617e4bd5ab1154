"""Offers and hits: parts of them."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket.market.offer import Hit, Offers


def offers(pool: str, first: int, count: int, *, summed: bool = False) -> Offers:
    slots = np.arange(first, first + count, dtype=np.int64)
    sums = slots.astype(np.uint64) + 1000 if summed else None
    return Offers(pool, 7, slots, slots.astype(np.uint64) + 100, sums)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0, 3), (1, 3), (2, 5), (2, 9), (4, 5), (0, 4)])
def test_part_of_offers(start, end, summed):
    part = offers("p", 10, 5, summed=summed).part(start, end)
    wanted = list(range(10, 15))[start:end]
    assert (part.pool, part.epoch, part.slots.tolist()) == ("p", 7, wanted)
    assert part.generations.tolist() == [slot + 100 for slot in wanted]
    assert (part.checksums.tolist() if summed else part.checksums) == ([s + 1000 for s in wanted] if summed else None)


def test_all_of_them_is_no_copy():
    whole = offers("p", 10, 5)
    assert whole.part(0, 5) is whole and whole.part(0, 9) is whole


def test_part_of_a_hit_goes_over_its_runs():
    hit = Hit(0, 9, 0, (offers("a", 0, 4), offers("b", 50, 2), offers("c", 90, 3)), {})
    blocks = [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 50), ("b", 51), ("c", 90), ("c", 91), ("c", 92)]
    for start in range(10):
        for count in range(10 - start):
            found = [(run.pool, slot) for run in hit.part(start, count) for slot in run.slots.tolist()]
            assert found == blocks[start : start + count]
