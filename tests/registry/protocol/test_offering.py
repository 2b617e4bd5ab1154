"""Offerings: what is told of blocks that go on from others."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket.registry.protocol.messages import Before
from kvmarket.registry.protocol.offering import Offering, offering_of

SIZE = 2


def whole(first: int, blocks: int) -> Offering:
    tokens = np.arange(SIZE * (first + blocks), dtype=np.int32)
    slots = np.arange(10, 10 + blocks, dtype=np.int64)
    return Offering("p", "t", tokens, first, slots, 3, slots.astype(np.uint64) + 100, slots.astype(np.uint64) + 200)


@pytest.mark.parametrize(("first", "blocks"), [(1, 1), (1, 3), (4, 2)])
def test_going_on_tells_no_token_twice(first, blocks):
    before = Before(7, 3, 55)
    offering = whole(first, blocks).going_on(before)
    assert offering.tokens.tolist() == list(range(SIZE * first, SIZE * (first + blocks)))
    assert (offering.before, offering.first, offering.slots.tolist()) == (before, first, list(range(10, 10 + blocks)))


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("most", [1, 2, 4, 9])
def test_pieces_are_all_of_it_each_going_on_from_the_one_before(first, most):
    pieces = [offering_of(piece.message(), SIZE) for piece in whole(first, 5).pieces(most)]
    tokens = whole(first, 5).tokens.tolist()
    assert [slot for piece in pieces for slot in piece.slots.tolist()] == [10, 11, 12, 13, 14]
    assert [word for piece in pieces for word in piece.generations.tolist()] == [110, 111, 112, 113, 114]
    assert all(piece.checksums.tolist() == (piece.slots + 200).tolist() for piece in pieces)
    for piece in pieces:
        start = piece.first
        if piece is pieces[0]:
            assert piece.before is None and piece.tokens.tolist() == tokens[: SIZE * (first + len(piece.slots))]
        else:
            at = int(piece.slots[0]) - 1
            assert piece.before == Before(at, 3, at + 100)
            assert piece.tokens.tolist() == tokens[SIZE * start : SIZE * (start + len(piece.slots))]
        assert start == first + int(piece.slots[0]) - 10
