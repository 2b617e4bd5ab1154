"""Block ids of every kind and number, in each of the ways in which so many are checked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from kvmarket.errors import SlotError
from kvmarket.pool.slots import FEW, MANY, as_slots, check_slots

SIZES = (1, 2, FEW - 1, FEW, FEW + 1, MANY - 1, MANY, MANY + 1)
sizes = pytest.mark.parametrize("size", SIZES)


def shuffled(size: int) -> list[int]:
    """All slots of a pool of `size`, in no order."""
    return np.random.default_rng(size).permutation(size).tolist()


def refused(ids: list[int], count: int) -> str:
    """What is said of the ids, whether they come as a list or as an array."""
    with pytest.raises(SlotError) as of_list:
        check_slots(ids, count)
    with pytest.raises(SlotError) as of_array:
        check_slots(np.array(ids, np.int64), count)
    assert str(of_list.value) == str(of_array.value)
    return str(of_list.value).partition(";")[0]


@sizes
def test_distinct_ids_in_range_are_taken_in_their_order(size):
    ids = shuffled(size)
    for given in (ids, tuple(ids), np.array(ids), torch.tensor(ids)):
        assert check_slots(given, size).tolist() == ids
    assert check_slots(ids[1:], size).tolist() == ids[1:], "neither need all be there, nor the first, nor the last"
    assert check_slots(range(size), size).tolist() == list(range(size))


@sizes
@pytest.mark.parametrize("bad", [-1, "count", -(2**63), 2**63 - 1])
@pytest.mark.parametrize("where", [0, -1])
def test_an_id_out_of_range_is_named(size, bad, where):
    ids = shuffled(size)
    ids[where] = size if bad == "count" else bad
    assert refused(ids, size) == f"block id {ids[where]} is out of range"


@sizes
def test_an_id_below_zero_is_not_taken_for_one_from_the_end(size):
    assert refused([*range(size - 1), -1], size) == "block id -1 is out of range"


@sizes
def test_the_pools_last_id_is_told(size):
    with pytest.raises(SlotError, match=f"slots 0 to {size - 1}$"):
        check_slots([*shuffled(size), size], size)


@pytest.mark.parametrize("size", SIZES[1:])
def test_an_id_that_comes_twice_is_named(size):
    for first, again in ((0, -1), (-1, 0), (size // 2, 0)):
        ids = shuffled(size)
        ids[again] = ids[first]
        if first % size != again % size:
            assert refused(ids, size) == f"block id {ids[first]} is given twice in one call"


def test_no_ids():
    for none in ([], (), range(0), np.empty(0, np.int64), torch.empty(0, dtype=torch.int64)):
        assert check_slots(none, 1).shape == (0,)


@pytest.mark.parametrize(
    "given",
    [
        [2, 5, 8],
        (2, 5, 8),
        range(2, 9, 3),
        np.array([2, 5, 8]),
        np.array([2, 5, 8], np.int32),
        np.array([2, 5, 8], np.uint8),
        torch.tensor([2, 5, 8], dtype=torch.int32),
    ],
)
def test_every_kind_becomes_an_array_of_its_own(given):
    slots = as_slots(given)
    assert (slots.dtype, slots.ndim, slots.tolist()) == (np.int64, 1, [2, 5, 8])
    assert slots.flags.writeable and slots.flags.c_contiguous
    if not isinstance(given, tuple | range):
        given[0] = 7
        assert slots[0] == 2, "the caller may change what is his"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (3, "block_ids is a int; give a list of integers"),
        ({1, 2}, "block_ids is a set; give a list of integers"),
        ("12", "block_ids is a str; give a list of integers"),
        ([1, 2.0], "block id 2.0 is a float; give plain integers"),
        ([1, True], "block id True is a bool; give plain integers"),
        (np.array([1.5]), "block id 1.5 is a float; give plain integers"),
        (np.array([[1], [2]]), "block id [1] is a list; give plain integers"),
        (np.int64(3), "block_ids is a int; give a list of integers"),
        (np.array(3), "block_ids is a int; give a list of integers"),
        ([1, 2**63], "a block id is beyond 64 bits; give ids of slots"),
    ],
)
def test_anything_else_is_refused(given, error):
    with pytest.raises(SlotError, match=f"^{re.escape(error)}$"):
        as_slots(given)
