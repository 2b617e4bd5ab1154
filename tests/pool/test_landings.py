"""What fetches put into slots is known until somebody writes something else there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.micro.forms import FORMS, Shape, make
from kvmarket import PagedCache, counters
from kvmarket.errors import SlotError
from kvmarket.pool import Generations
from kvmarket.pool import landings as landings_module
from kvmarket.pool.landings import Landings, Purpose
from kvmarket.pool.marks import MARK_BYTES, Marks

BLOCK, SLOTS = 4, 8
YES, NO = True, False


def tokens(blocks: int, seed: int = 0) -> np.ndarray:
    return np.arange(blocks * BLOCK, dtype=np.int32) + 1000 * seed


class Memory:
    """A cache with generations, and the landings in it."""

    def __init__(self) -> None:
        self.layers = [torch.zeros(SLOTS, 2, BLOCK, 8) for _ in range(2)]
        self.cache = PagedCache(self.layers, block_size=BLOCK)
        self.generations = Generations(SLOTS)
        self.table = Landings(self.cache.slot_array(), self.generations)

    def begin(self, slots: list[int], prefix: np.ndarray | None = None, first: int = 0, lane: object = None):
        ids = np.array(slots)
        purpose = Purpose(prefix, first, BLOCK, self.cache.writes)
        return self.table.begin(ids, purpose, lane, lambda: self.generations.raise_slots(ids))

    def retire(self, *slots: int) -> None:
        self.generations.raise_slots(np.array(slots))

    def empty(self, slots: list[int], prefix: np.ndarray) -> list[int]:
        """The slots that hold nothing. Raises SlotError."""
        look = self.table.check(np.array(slots), prefix)
        return [] if look is None else np.array(slots)[look()].tolist()


@pytest.fixture
def memory():
    made = Memory()
    yield made
    made.generations.close()


def test_nothing_was_fetched(memory):
    assert memory.table.check(np.array([1, 2]), tokens(2)) is None


def test_slots_are_retired_before_their_generation_is_taken(memory):
    before = memory.generations.read(np.array([1, 2]))
    landing = memory.begin([1, 2])
    assert (memory.generations.read(np.array([1, 2])) == before + 1).all()
    assert landing.intact().tolist() == [YES, YES]
    memory.retire(2)
    assert landing.intact().tolist() == [YES, NO]


def test_a_fetch_under_way_may_not_be_published(memory):
    landing = memory.begin([1, 2], tokens(2))
    with pytest.raises(SlotError, match=r"block id 2 is still being fetched.*wait\(\)"):
        memory.empty([2], tokens(1))
    memory.retire(2)
    with pytest.raises(SlotError, match="still being fetched"):
        memory.empty([2], tokens(1))
    landing.end(np.array([YES, YES]))
    assert memory.empty([1, 3], tokens(2)) == []


def test_what_did_not_come_is_empty_until_it_is_written(memory):
    memory.begin([5, 1, 2], tokens(3)).end(np.array([YES, NO, NO]))
    assert memory.empty([5, 1, 2], tokens(3)) == [1, 2]
    memory.layers[0][1] = 3.0
    assert memory.empty([5, 1, 2], tokens(3)) == [2]
    memory.retire(2)
    assert memory.empty([5, 1, 2], tokens(3)) == [2], "retired is not written"
    memory.layers[0][2, 0, 0, :2] = 1.0
    assert memory.empty([5, 1, 2], tokens(3)) == []
    assert not memory.table._state[[1, 2]].any(), "nothing is known of them any more"


def test_a_later_fetch_into_a_slot_is_the_one_that_counts(memory):
    first = memory.begin([1, 2], tokens(2))
    second = memory.begin([2, 3], tokens(2, 5))
    first.end(np.array([YES, YES]))
    assert first.intact().tolist() == [YES, NO]
    with pytest.raises(SlotError, match="block id 2 is still"):
        memory.empty([1, 2], tokens(2))
    second.end(np.array([NO, YES]))
    assert memory.empty([1], tokens(1)) == []
    assert memory.empty([2], tokens(1, 5)) == [2]


def test_an_earlier_fetch_that_brought_nothing_marks_nothing_of_a_later_one(memory):
    first = memory.begin([1], tokens(1))
    second = memory.begin([1], tokens(1))
    memory.layers[0][1] = 7.0
    first.end(np.array([NO]))
    assert (memory.layers[0][1] == 7.0).all()
    second.end(np.array([YES]))
    assert memory.empty([1], tokens(1)) == []


def test_a_slot_that_was_retired_meanwhile_is_not_touched_nor_published(memory):
    landing = memory.begin([1, 2], tokens(2))
    memory.retire(1)
    memory.layers[0][1] = 7.0
    landing.end(np.array([NO, YES]))
    assert (memory.layers[0][1] == 7.0).all(), "its owner may have written it"
    with pytest.raises(SlotError, match="block id 1 may not hold"):
        memory.empty([1, 2], tokens(2))
    memory.retire(1)
    assert memory.empty([1, 2], tokens(2)) == []


def test_another_lane_has_to_wait(memory):
    mine, theirs = object(), object()
    landing = memory.begin([1, 2], lane=mine)
    before = memory.generations.read(np.arange(SLOTS))
    with pytest.raises(SlotError, match="another market"):
        memory.begin([2, 3], lane=theirs)
    assert (memory.generations.read(np.arange(SLOTS)) == before).all(), "nothing was retired"
    again = memory.begin([2], lane=mine)
    landing.end(np.array([YES, YES]))
    with pytest.raises(SlotError, match="another market"):
        memory.begin([2], lane=theirs)
    memory.begin([1], lane=theirs)
    again.end(np.array([YES]))
    memory.begin([2], lane=theirs)


OTHERS = {
    "other tokens": ([4, 5, 6], tokens(3, 9)),
    "other tokens from the second block on": ([4, 5, 6], np.concatenate([tokens(1), tokens(2, 9)])),
    "one other token": ([4, 5, 6], np.concatenate([tokens(3)[:-1], [np.int32(77)]])),
    "another order": ([5, 4, 6], tokens(3)),
    "another place": ([1, 4, 5], tokens(3)),
    "fewer before it": ([5, 6], tokens(3)[BLOCK:]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_are_published_with_the_tokens_that_they_were_fetched_for(memory, name):
    slots, prefix = OTHERS[name]
    memory.begin([4, 5, 6], tokens(4)).end(np.array([YES, YES, YES]))
    assert memory.empty([4, 5, 6], tokens(3)) == []
    assert memory.empty([4, 5], tokens(2)) == []
    assert memory.empty([4, 5, 6, 7], tokens(4)) == [], "more of the same"
    with pytest.raises(SlotError, match=r"fetched for other tokens.*retire\(\["):
        memory.empty(slots, prefix)
    memory.layers[0][0] = 1.0  # it may have been any slot
    assert memory.empty(slots, prefix) == []


def test_the_message_names_the_first_slot_that_is_wrong(memory):
    memory.begin([4, 5, 6], tokens(3)).end(np.array([YES, YES, YES]))
    with pytest.raises(SlotError, match=r"block id 5 .*retire\(\[5\]\)"):
        memory.empty([4, 5, 6], np.concatenate([tokens(1), tokens(2, 9)]))


def test_a_prompt_that_goes_on_behind_the_fetched_blocks_is_the_same(memory):
    memory.begin([4, 5], tokens(2)).end(np.array([YES, YES]))
    assert memory.empty([4, 5, 6], tokens(3)) == []


def test_a_part_of_a_hit_lies_where_it_does(memory):
    memory.begin([4, 5], tokens(4), first=2).end(np.array([YES, YES]))
    assert memory.empty([0, 1, 4, 5], tokens(4)) == []
    with pytest.raises(SlotError, match="other tokens"):
        memory.empty([4, 5], tokens(2))


def test_a_slot_that_was_retired_may_hold_anything(memory):
    memory.begin([4], tokens(1)).end(np.array([YES]))
    memory.retire(4)
    assert memory.empty([4], tokens(1, 9)) == []


def test_without_tokens_or_a_count_of_writes_nothing_is_refused(memory):
    memory.begin([4]).end(np.array([YES]))
    assert memory.empty([4], tokens(1, 9)) == []
    with torch.inference_mode():
        layers = [torch.zeros(SLOTS, 2, BLOCK, 8)]
    cache = PagedCache(layers, block_size=BLOCK)
    assert cache.writes() is None
    purpose = Purpose(tokens(1), 0, BLOCK, cache.writes)
    memory.table.begin(np.array([5]), purpose, None, lambda: None).end(np.array([YES]))
    assert memory.empty([5], tokens(1, 9)) == []


def test_writes_in_inference_mode_are_counted(memory):
    before = memory.cache.writes()
    with torch.inference_mode():
        memory.layers[0][3, 1] = 5.0
    assert memory.cache.writes() > before


def test_a_device_that_fails_leaves_a_slot_that_must_be_written(memory, monkeypatch):
    def fail(_self, _slots):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patched:
        patched.setattr(Marks, "put", fail)
        memory.begin([4], tokens(1)).end(np.array([NO]))
    assert counters.snapshot()["mark_failed{RuntimeError}"]
    with pytest.raises(SlotError, match="may not hold"):
        memory.empty([4], tokens(1))
    memory.retire(4)
    assert memory.empty([4], tokens(1)) == []


def test_fetches_whose_slots_others_have_are_forgotten(memory, monkeypatch):
    monkeypatch.setattr(landings_module, "FEW", 4)
    memory.table._most = 4
    memory.begin([7], tokens(1)).end(np.array([YES]))
    for seed in range(20):
        memory.begin([seed % 3], tokens(1, seed)).end(np.array([YES]))
    assert len(memory.table._brought) <= 9
    with pytest.raises(SlotError, match="other tokens"):
        memory.empty([7], tokens(1, 9))
    assert not memory.table._lanes


# ---- marks


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FORMS for name in FORMS[family]])
def test_marks_in_caches_of_every_form(family, name):
    made = make(name, Shape(family, 16, 2, 24), layers=2, slots=5)
    marks, before = Marks(made.array), [segment.clone() for segment in made.array.segments]
    bears = marks.put(np.array([1, 3]))
    assert bears == (name != "interleaved"), "every other element is of the other half"
    assert marks.look(np.array([0, 1, 2, 3, 4]))().tolist() == [False, bears, False, bears, False]
    changed = sum(int((a != b).sum()) for a, b in zip(before, made.array.segments, strict=True))
    assert changed <= 2 * MARK_BYTES
    if bears:
        first = made.array.part_views()[0]
        for slot in (1, 3):
            first[slot] += 1
        assert not marks.look(np.array([1, 3]))().any()


def test_tiny_slots_bear_no_mark():
    array = PagedCache([torch.zeros(4, 7, dtype=torch.uint8)], block_size=1).slot_array()
    assert not Marks(array).put(np.array([1]))
    assert not array.segments[0].any()
    whole = PagedCache([torch.zeros(4, 8, dtype=torch.uint8)], block_size=1).slot_array()
    assert Marks(whole).put(np.array([1])) and whole.segments[0].any()


FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_mark_is_small_numbers(dtype):
    """A mask times NaN is NaN."""
    layer = torch.zeros(200, 16, dtype=dtype)
    for _ in range(50):
        assert Marks(PagedCache([layer], block_size=1).slot_array()).put(np.arange(200))
        assert (layer.float().abs() < 2).all()


def test_marks_of_no_slots(memory):
    assert Marks(memory.cache.slot_array()).put(np.empty(0, np.int64))
