"""What is decided about a copy before anything moves: ranges, chunks, the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarket.ways.choice import BUILT_IN, Choice, Rate
from kvmarket.ways.copy_way import addresses, merged
from kvmarket.ways.staged_way import chunks

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


def test_the_fastest_way_that_can_be_taken():
    rates = [Rate("pull", 1 << 20, 4096, 100.0), Rate("pull", 1 << 30, 4096, 300.0), Rate("copy", 1 << 20, 4096, 50.0)]
    rates += [Rate("copy", 1 << 30, 4096, 290.0), Rate("staged", 1 << 20, 4096, 10.0)]
    choice = Choice([*rates, Rate("staged", 1 << 30, 4096, 400.0)])
    assert choice.way(1 << 20, 4096, contiguous=True, packed=True) == "pull"
    assert choice.way(1 << 30, 4096, contiguous=True, packed=True) == "copy", "almost as fast, and takes no SM"
    assert choice.way(1 << 30, 4096, contiguous=False, packed=True) == "staged"
    assert choice.way(1 << 30, 4096, contiguous=False, packed=False) == "pull"
    assert choice.way(1, 4096, contiguous=True, packed=True) == "pull", "smaller than all that was measured"
    late = Choice([Rate("pull", 1 << 20, 4096, 30.0), Rate("staged", 1 << 24, 4096, 60.0)])
    assert late.way(1 << 20, 4096, contiguous=False, packed=True) == "pull", "what was measured for more says no rate"
    assert choice.way(1 << 40, 4096, contiguous=False, packed=True) == "staged", "larger"
    assert choice.way(1 << 30, 4096, contiguous=False, packed=True, busy=True) == "staged", "nothing busy was measured"


def test_of_two_sizes_of_fragments_the_nearer_one_counts():
    choice = Choice([Rate("pull", 1 << 20, 1024, 1.0), Rate("pull", 1 << 20, 65536, 9.0), Rate("copy", 1, 1, 5.0)])
    assert choice.way(1 << 20, 2048, contiguous=True, packed=False) == "copy"
    assert choice.way(1 << 20, 32768, contiguous=True, packed=False) == "pull"


@pytest.mark.parametrize("nbytes", [1, 2 << 20, 100 << 20, 1 << 34])
def test_the_built_in_table_knows_every_way(nbytes: int):
    assert BUILT_IN.way(nbytes, 65536, contiguous=False, packed=False) == "pull"
    assert BUILT_IN.way(nbytes, 65536, contiguous=False, packed=True) == "pull", "one fetch of packed slots at a time"
    assert BUILT_IN.way(nbytes, 2 << 20, contiguous=True, packed=True) in ("pull", "copy")
    behind = BUILT_IN.way(nbytes, 65536, contiguous=False, packed=True, busy=True)
    assert behind == "pull", "staged takes a fast CPU"


def test_a_copy_behind_another_goes_by_what_was_measured_so():
    rates = [Rate("pull", 1 << 20, 4096, 9.0), Rate("staged", 1 << 20, 4096, 8.0)]
    choice = Choice([*rates, Rate("pull", 1 << 20, 4096, 9.0, True), Rate("staged", 1 << 20, 4096, 10.0, True)])
    assert choice.way(1 << 20, 4096, contiguous=False, packed=True) == "pull"
    assert choice.way(1 << 20, 4096, contiguous=False, packed=True, busy=True) == "staged"
