"""What becomes of the slots that a fetch was given, where a GPU fills them; and what of a dead engine's memory."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from bench.micro.forms import FORMS, Shape, make
from kvmarket import PagedCache, counters
from kvmarket.errors import SlotError
from kvmarket.market.data import DataHalf
from kvmarket.pool.marks import Marks
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until

pytestmark = pytest.mark.gpu
STAGING = 8 * 2 * 2 * BLOCK * 24 * 2


@pytest.fixture
def pair(market_address):
    owner, reader = (ModelEngine(market_address, device="cuda", staging_bytes=STAGING) for _ in range(2))
    yield owner, reader
    owner.close()
    reader.close()


def short(owner, reader, seed: int):
    """A fetch of four blocks that brings two."""
    tokens = prompt(16, seed)
    owner.publish(tokens, [0, 1, 2, 3])
    hit = matched(reader, tokens)
    owner.market.retire([2])
    assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 2
    return tokens


def lost() -> int:
    return sum(n for key, n in counters.snapshot().items() if "did not bring its block" in key)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FORMS for name in FORMS[family]])
def test_marks_in_caches_of_every_form(family, name):
    made = make(name, Shape(family, 16, 2, 24), layers=2, slots=5, device="cuda")
    marks = Marks(made.array)
    bears = marks.put(np.array([1, 3]))
    assert bears == (name != "interleaved")
    looks = [marks.look(np.array([0, 1, 2, 3, 4]))]
    made.array.part_views()[0][3] += 1
    looks.append(marks.look(np.array([0, 1, 2, 3, 4])))
    torch.cuda.current_stream().synchronize()
    assert [look().tolist() for look in looks] == [[False, bears, False, bears, False], [False, bears, *[False] * 3]]


@pytest.mark.parametrize("staged", [False, True])
def test_what_a_fetch_did_not_bring_is_not_offered(pair, market_address, staged):
    owner, reader = pair
    tokens, before = short(owner, reader, 800 + staged), lost()
    assert reader.market.publish(tokens, [4, 5, 6, 7], staged=staged) == 4
    until(lambda: lost() == before + 2)
    owner.market.retire([0, 1, 2, 3])
    third = ModelEngine(market_address, device="cuda")
    until(lambda: third.market.match(tokens).blocks == 2)
    time.sleep(0.2)
    assert third.take(tokens, [0, 1, 2, 3]) == 2
    third.close()


@pytest.mark.parametrize("staged", [False, True])
def test_what_was_computed_into_the_slots_that_were_left_is(pair, market_address, staged):
    """By work that the GPU has not begun when it is published."""
    owner, reader = pair
    tokens = short(owner, reader, 802 + staged)
    torch.cuda._sleep(200_000_000)
    for block in (2, 3):
        reader.write(4 + block, tokens[: (block + 1) * BLOCK])
    assert reader.market.publish(tokens, [4, 5, 6, 7], staged=staged) == 4
    owner.market.retire([0, 1, 2, 3])
    third = ModelEngine(market_address, device="cuda")
    matched(third, tokens)
    assert third.take(tokens, [0, 1, 2, 3]) == 4
    third.close()


def test_blocks_are_published_with_the_tokens_that_they_were_fetched_for(pair):
    owner, reader = pair
    tokens = prompt(16, 804)
    owner.publish(tokens, [0, 1, 2, 3])
    matched(reader, tokens)
    assert reader.take(tokens, [4, 5, 6, 7]) == 4
    with pytest.raises(SlotError, match="other tokens"):
        reader.market.publish(prompt(16, 805), [4, 5, 6, 7])
    assert reader.market.publish(tokens, [4, 5, 6, 7]) == 4


def test_of_two_fetches_into_one_slot_the_later_one_counts(pair):
    owner, reader = pair
    first, second = prompt(16, 806), prompt(16, 807)
    owner.publish(first, [0, 1, 2, 3])
    owner.publish(second, [4, 5, 6, 7])
    hits = [matched(reader, first), matched(reader, second)]
    torch.cuda._sleep(50_000_000)  # both copies wait for the current stream
    one = reader.market.fetch(hits[0], [8, 9, 10, 11])
    two = reader.market.fetch(hits[1], [10, 11, 12, 13])
    assert (one.wait(), two.wait()) == (2, 4)
    assert all(reader.holds(10 + block, second[: (block + 1) * BLOCK]) for block in range(4))


def hold(market_address: str, gib: int):
    """A peer whose cache takes so much of the GPU, and a hit on it."""
    slots = (gib << 30) // (2 * 2 * BLOCK * 24 * 2)
    peer = Peer(market_address, device="cuda", slots=slots)
    scout, tokens = ModelEngine(market_address, device="cuda"), prompt(16, 808)
    peer.publish(tokens, [0, 1, 2, 3])
    hit = matched(scout, tokens)
    scout.close()
    return peer, hit


def test_an_idle_worker_gives_a_dead_engines_memory_back(market_address):
    """Nobody calls its data half: its scheduler has no step to do."""
    layers = [torch.zeros(8, 2, BLOCK, 24, dtype=torch.int16, device="cuda") for _ in range(2)]
    worker = DataHalf(PagedCache(layers, block_size=BLOCK))
    peer, hit = hold(market_address, 8)
    assert worker.fetch(hit, [0, 1, 2, 3]).wait() == 4
    before = torch.cuda.mem_get_info()[0]
    peer.kill()
    assert until(lambda: torch.cuda.mem_get_info()[0] > before + (7 << 30)) < 1.5
    assert not worker.mappings._mapped
    worker.close()
