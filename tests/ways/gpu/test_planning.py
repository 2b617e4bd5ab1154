"""What is decided about a copy before anything moves: ranges, chunks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvmarket.ways.gpu.copy_way import addresses, merged
from kvmarket.ways.gpu.staged_way import chunks

SIZE = 512
SLOTS = st.lists(st.integers(0, 40), unique=True, max_size=30)


@given(st.data())
def test_ranges_cover_every_block_once_and_are_as_long_as_can_be(data: st.DataObject):
    sources = np.array(data.draw(SLOTS), np.int64)
    targets = np.array(data.draw(st.permutations(range(len(sources)))), np.int64)
    here, there = addresses(1 << 40, SIZE, targets), addresses(1 << 50, SIZE, sources)
    to, of, sizes = merged(here, there, SIZE)
    blocks = [
        (int(a) + at, int(b) + at) for a, b, n in zip(to, of, sizes, strict=True) for at in range(0, int(n), SIZE)
    ]
    assert blocks == list(zip(here.tolist(), there.tolist(), strict=True))
    ends = zip(to[:-1] + sizes[:-1], of[:-1] + sizes[:-1], strict=True)
    assert all((a, b) != (c, d) for (a, b), c, d in zip(ends, to[1:], of[1:], strict=True)), "two that touch"


def test_slots_beyond_4_gib_and_strides_with_gaps():
    assert addresses(7, 3 << 30, np.array([0, 5])).tolist() == [7, 7 + (15 << 30)]
    apart = addresses(0, SIZE + 1, np.arange(3))
    assert merged(apart, apart, SIZE)[2].tolist() == [SIZE] * 3


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
def test_chunks_cover_all_fit_the_buffer_and_end_small(blocks: int, most: int, last: int):
    cut = list(chunks(blocks, most, last))
    assert [start for start, _ in cut] == [0, *(end for _, end in cut)][: len(cut)]
    assert (cut[-1][1] if cut else 0) == blocks
    assert all(0 < end - start <= most for start, end in cut)
    assert not cut or cut[-1][1] - cut[-1][0] <= max(last, 1) or cut[-1][1] - cut[-1][0] <= most
