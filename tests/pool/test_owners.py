"""Markets over one memory share its generations, and the last one is told to close them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvmarket import PagedCache
from kvmarket.errors import MisuseError
from kvmarket.pool import Generations, owners
from kvmarket.pool.owners import release


def acquire(cache: PagedCache) -> Generations:
    return owners.acquire(cache).generations


@pytest.fixture
def tensors():
    return [torch.zeros(8, 4, 2) for _ in range(2)]


def test_generations_live_from_the_first_market_to_the_last(tensors):
    first, second = acquire(PagedCache(tensors, 4)), acquire(PagedCache(tensors, 4))
    assert first is second and first.slots == 8
    elsewhere = acquire(PagedCache([torch.zeros(8, 4, 2)], 4))
    assert elsewhere is not first
    assert release(first) is False
    assert acquire(PagedCache(tensors, 4)) is first
    assert release(elsewhere) is True
    assert release(first) is False
    assert release(first) is True
    again = acquire(PagedCache(tensors, 4))
    assert again is not first
    first.raise_slots(np.array([1]))
    assert again.read(np.array([1])).tolist() == [1]
    assert release(again) is True


def test_memory_that_another_market_cuts_otherwise_is_refused_and_not_held(tensors):
    whole = acquire(PagedCache(tensors, 4))
    for _ in range(2):
        with pytest.raises(MisuseError, match="part of this cache is in another market"):
            acquire(PagedCache(tensors[:1], 4))
    with pytest.raises(MisuseError, match="as 8 slots, here as 4"):
        acquire(PagedCache([tensor[:4] for tensor in tensors], 4))
    assert release(whole) is True
    part = acquire(PagedCache(tensors[:1], 4))
    assert release(part) is True
