"""The helper that compares arrays says where they differ."""

from __future__ import annotations

import pytest
import torch

from bench.micro.forms import Shape, clone, make
from tests.bitwise import assert_bitwise, assert_same_blocks

ODD = Shape("kv", 8, 3, 5)


def test_equal_arrays_pass():
    array = make("padded", ODD, layers=2, slots=3).array
    assert_bitwise(array, clone(array))


def test_first_wrong_byte_is_named():
    array = make("hnd_pair", ODD, layers=2, slots=3).array
    other = clone(array)
    view = other.part_views()[3]
    view[2, 1, 2, 4] ^= 0x0100
    view[2, 7, 2, 4] ^= 0x0001
    place = r"2 of 720 bytes of segment 3 are wrong.*slot 2, part 3, coordinate \(1, 2, 4\), byte 1"
    with pytest.raises(AssertionError, match=place):
        assert_bitwise(other, array)
    with pytest.raises(AssertionError, match=r"slot 2 part 3 coordinate \(1, 2, 4\): "):
        assert_same_blocks(other, torch.arange(3), array, torch.arange(3))


def test_gaps_count():
    array = make("padded", ODD, layers=1, slots=3).array
    other = clone(array)
    other.segments[0][0] ^= 1
    with pytest.raises(AssertionError, match="a gap that belongs to no slot"):
        assert_bitwise(other, array)
