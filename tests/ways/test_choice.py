"""Which of the ways that can go is taken: by rates, whatever the ways are called."""

from __future__ import annotations

import pytest

from kvmarket.ways.choice import Candidate, Choice, Rate
from kvmarket.ways.gpu.mover import WAYS
from kvmarket.ways.way import built_in

BUILT_IN = built_in(WAYS)
PULL, COPY, STAGED = (way.candidate for way in WAYS)
FLAT, PACKED, PAGES = (PULL, COPY), (PULL, STAGED), (PULL,)  # what may be chosen, by how slots lie


def test_the_fastest_way_that_can_be_taken():
    rates = [Rate("pull", 1 << 20, 4096, 100.0), Rate("pull", 1 << 30, 4096, 300.0), Rate("copy", 1 << 20, 4096, 50.0)]
    rates += [Rate("copy", 1 << 30, 4096, 290.0), Rate("staged", 1 << 20, 4096, 10.0)]
    choice = Choice([*rates, Rate("staged", 1 << 30, 4096, 400.0)])
    assert choice.way(1 << 20, 4096, FLAT) == "pull"
    assert choice.way(1 << 30, 4096, FLAT) == "copy", "almost as fast, and takes no SM"
    assert choice.way(1 << 30, 4096, PACKED) == "staged"
    assert choice.way(1 << 30, 4096, PAGES) == "pull"
    assert choice.way(1, 4096, FLAT) == "pull", "smaller than all that was measured"
    late = Choice([Rate("pull", 1 << 20, 4096, 30.0), Rate("staged", 1 << 24, 4096, 60.0)])
    assert late.way(1 << 20, 4096, PACKED) == "pull", "what was measured for more says no rate"
    assert choice.way(1 << 40, 4096, PACKED) == "staged", "larger"
    assert choice.way(1 << 30, 4096, PACKED, busy=True) == "staged", "nothing busy was measured"


def test_of_two_sizes_of_fragments_the_nearer_one_counts():
    choice = Choice([Rate("pull", 1 << 20, 1024, 1.0), Rate("pull", 1 << 20, 65536, 9.0), Rate("copy", 1, 1, 5.0)])
    assert choice.way(1 << 20, 2048, FLAT) == "copy"
    assert choice.way(1 << 20, 32768, FLAT) == "pull"


@pytest.mark.parametrize("nbytes", [1, 2 << 20, 100 << 20, 1 << 34])
def test_the_built_in_table_knows_every_way(nbytes: int):
    assert BUILT_IN.way(nbytes, 65536, PAGES) == "pull"
    assert BUILT_IN.way(nbytes, 65536, PACKED) == "pull", "one fetch of packed slots at a time"
    assert BUILT_IN.way(nbytes, 2 << 20, FLAT) in ("pull", "copy")
    behind = BUILT_IN.way(nbytes, 65536, PACKED, busy=True)
    assert behind == "pull", "staged takes a fast CPU"


def test_a_copy_behind_another_goes_by_what_was_measured_so():
    rates = [Rate("pull", 1 << 20, 4096, 9.0), Rate("staged", 1 << 20, 4096, 8.0)]
    choice = Choice([*rates, Rate("pull", 1 << 20, 4096, 9.0, True), Rate("staged", 1 << 20, 4096, 10.0, True)])
    assert choice.way(1 << 20, 4096, PACKED) == "pull"
    assert choice.way(1 << 20, 4096, PACKED, busy=True) == "staged"


def test_of_ways_without_a_rate_the_first_one_that_can_go():
    assert Choice([]).way(1 << 20, 4096, PACKED) == "pull", "never one that cannot"
    assert Choice([]).way(1 << 20, 4096, PAGES) == "pull"


def test_of_two_that_take_no_sm_the_faster_and_of_equals_the_earlier():
    ways = [Candidate(name, sparing=name != "first") for name in ("first", "second", "third")]
    rates = {"first": 100.0, "second": 96.0, "third": 98.0}
    choice = Choice([Rate(name, 1, 1, rate) for name, rate in rates.items()])
    assert choice.way(1, 1, tuple(ways)) == "third"
    assert choice.way(1, 1, tuple(ways[:2])) == "second"
    assert Choice([Rate(way.name, 1, 1, 5.0) for way in ways]).way(1, 1, tuple(ways)) == "second"
