"""Sets of integers: what NumPy's own functions say, without what these import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kvmarket.support.sets import common, distinct

SERVING = """
import sys
import numpy as np
import kvmarket.transport.cuda_ipc, kvmarket.transport.shm
from tests.histories.node import run_chunk
before = set(sys.modules)
assert run_chunk((1, 30, 2)) == []
late = sorted(name for name in set(sys.modules) - before if name.startswith(("numpy", "kvmarket")))
assert not late, late
"""


@pytest.mark.parametrize("size", [0, 1, 2, 5, 300])
def test_are_as_those_of_numpy(size):
    chance = np.random.default_rng(size)
    for _ in range(50):
        some, others = (chance.integers(-9, 9 if size < 6 else 400, size) for _ in range(2))
        assert distinct(some).tolist() == np.unique(some).tolist()
        assert common(some, others).tolist() == np.intersect1d(some, others).tolist()
        assert distinct(distinct(some)).tolist() == np.unique(some).tolist()


def test_an_ordered_set_is_not_copied():
    ordered = np.array([1, 5, 9])
    assert distinct(ordered) is ordered


def test_nothing_is_imported_while_it_serves():
    """An import takes some 60 ms of whoever's step it happens to be in."""
    done = subprocess.run([sys.executable, "-c", SERVING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
