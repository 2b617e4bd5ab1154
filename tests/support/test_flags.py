"""Arrays of booleans: how many are true, and how many before the first that is not."""

from __future__ import annotations

import itertools

import numpy as np

from kvmarket.support.flags import leading, total


def test_all_arrays_of_few_flags():
    for size in range(5):
        for values in itertools.product((False, True), repeat=size):
            flags = np.array(values, np.bool_)
            assert total(flags) == sum(values)
            assert leading(flags) == len(list(itertools.takewhile(bool, values)))
