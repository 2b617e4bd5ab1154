"""Staging pools: the ring hands out its slots in turn, and a pack carries bytes and checksums there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvmarket import PagedCache
from kvmarket.errors import LayoutError
from kvmarket.kernels import checksum
from kvmarket.kernels.checksum import checksum_reference
from kvmarket.pool import StagingPool, StagingRing


def test_a_ring_hands_out_consecutive_slots_and_begins_again_where_a_request_does_not_fit():
    ring = StagingRing(5)
    taken = [ring.take(n).tolist() for n in (2, 2, 2, 3, 1, 9, 1, 0)]
    assert taken == [[0, 1], [2, 3], [0, 1], [2, 3, 4], [0], [0, 1, 2, 3, 4], [0], []]


def cache_of(dtype=torch.int16, width=8):
    """A cache of six blocks of random bytes, whose K and V lie apart."""
    layers = [tuple(torch.zeros(6, 2, width, dtype=dtype) for _ in "kv") for _ in range(3)]
    for tensor in (tensor for layer in layers for tensor in layer):
        tensor.random_(0, 100)
    return PagedCache(layers, block_size=2)


def blocks_of(array, slots):
    """The packed bytes of each block."""
    return [torch.cat([view[slot].reshape(-1) for view in array.part_views()]).tolist() for slot in slots]


def test_a_pool_is_as_large_as_it_may_be():
    cache = cache_of()
    assert StagingPool(cache, 3 * cache.slot_bytes - 1).ring.slots == 2
    pool = StagingPool(cache, cache.slot_bytes)
    assert pool.ring.slots == pool.slots.layout.slots == 1
    with pytest.raises(LayoutError, match=f"less than a block; give at least {cache.slot_bytes}"):
        StagingPool(cache, cache.slot_bytes - 1)


@pytest.mark.parametrize("options", [{}, {"summed": True}, {"summed": False}])
def test_a_pack_carries_blocks_and_their_checksums(options):
    cache = cache_of()
    pool = StagingPool(cache, 4 * cache.slot_bytes)
    packed = pool.pack(cache.slot_array(), np.array([5, 0, 3]), np.array([1, 2, 0]), **options)
    assert blocks_of(pool.slots, [1, 2, 0]) == blocks_of(cache.slot_array(), [5, 0, 3])
    sums = packed.checksums()
    if options.get("summed", True):
        expected = checksum.finish(checksum_reference(cache.slot_array(), torch.tensor([5, 0, 3])))
        assert sums is not None and sums.tolist() == expected.tolist()
    else:
        assert sums is None


def test_blocks_that_are_no_whole_words_are_packed_without_checksums():
    cache = cache_of(torch.uint8, 3)
    pool = StagingPool(cache, 2 * cache.slot_bytes)
    packed = pool.pack(cache.slot_array(), np.array([4]), np.array([1]))
    assert packed.checksums() is None
    assert blocks_of(pool.slots, [1]) == blocks_of(cache.slot_array(), [4])
