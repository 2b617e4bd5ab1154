"""Which comes first: a generation is raised before anything is said, copied or written."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket import counters
from kvmarket.market.mappings import KEPT_FETCHES, Mappings
from kvmarket.ways import cpu
from tests.model_engine import BLOCK, SLOTS, ModelEngine, matched, prompt, until

CUT = "fetch_cut{a block was retired before it could be fetched}"
STAGING = 4 * 2 * 2 * BLOCK * 24 * 2


@pytest.fixture
def pair(market_address):
    owner, reader = ModelEngine(market_address, staging_bytes=STAGING), ModelEngine(market_address)
    yield owner, reader
    owner.close()
    reader.close()


def now(engine: ModelEngine, staged: bool = False) -> list[int]:
    pool = engine.market._control.staging if staged else engine.market._control.pool
    return pool.generations.read(np.arange(pool.generations.slots)).tolist()


@pytest.fixture
def heard(pair, monkeypatch):
    """The generations of the owner's slots when its retirements were sent, and when it hung up."""
    owner, _ = pair
    client, seen = owner.market._control._client, []
    for name in ("retire", "close"):
        real = getattr(client, name)

        def tell(*arguments, real=real):
            seen.append((now(owner), now(owner, staged=True)))
            return real(*arguments)

        monkeypatch.setattr(client, name, tell)
    return seen


def test_retired_slots_are_dead_before_their_offers_are_taken_down(pair, heard):
    owner, _ = pair
    owner.publish(prompt(16, 700), [0, 1, 2, 3])
    before = now(owner)
    owner.market.retire([1, 2])
    assert [slot for slot in range(SLOTS) if heard[0][0][slot] > before[slot]] == [1, 2]
    assert len(heard) == 1


def test_destinations_of_a_fetch_are_dead_before_their_offers_are_taken_down(pair, heard):
    owner, reader = pair
    owner.publish(prompt(16, 701), [0, 1, 2, 3])
    reader.publish(prompt(16, 702), [0, 1, 2, 3])
    hit = matched(owner, prompt(16, 702))
    before = now(owner)
    assert owner.market.fetch(hit, [2, 3, 4, 5]).wait() == 4
    assert [slot for slot in range(SLOTS) if heard[0][0][slot] > before[slot]] == [2, 3, 4, 5]


def test_slots_of_the_staging_pool_are_dead_before_others_are_packed_into_them(pair, heard, monkeypatch):
    owner, _ = pair
    owner.publish(prompt(16, 703), [0, 1, 2, 3], staged=True)
    before, seen = now(owner, staged=True), []

    def pack(*arguments, real=owner.market._staging.pack, **options):
        seen.append(now(owner, staged=True))
        return real(*arguments, **options)

    monkeypatch.setattr(owner.market._staging, "pack", pack)
    owner.publish(prompt(8, 704), [4, 5], staged=True)
    assert [slot for slot in range(4) if seen[0][slot] > before[slot]] == [0, 1]
    assert [slot for slot in range(4) if heard[0][1][slot] > before[slot]] == [0, 1]


def test_all_offers_are_dead_before_the_market_is_told_of_the_end(pair, heard):
    owner, reader = pair
    owner.publish(prompt(16, 705), [0, 1, 2, 3])
    owner.publish(prompt(8, 706), [4, 5], staged=True)
    hits = [matched(reader, prompt(16, 705)), matched(reader, prompt(8, 706))]
    before = now(owner), now(owner, staged=True)
    owner.close()
    after = heard[-1]
    assert [slot for slot in range(SLOTS) if after[0][slot] > before[0][slot]] == [0, 1, 2, 3]
    assert [slot for slot in range(4) if after[1][slot] > before[1][slot]] == [0, 1]
    assert [reader.market.fetch(hit, [8, 9]).wait() for hit in hits] == [0, 0]


def test_offers_are_dead_before_the_publications_that_wait_are_waited_for(pair):
    """Nothing that waits is offered behind the end."""
    owner, reader = pair
    tokens = prompt(16, 707)
    pending = owner.market._pending
    offer = owner.market._control.offer
    generations = owner.market._control.generations([0, 1, 2, 3])
    pending.add(lambda: False, lambda: offer(tokens, [0, 1, 2, 3], generations))
    owner.close()
    assert reader.market.match(tokens).blocks == 0


def test_the_epoch_of_a_pool_that_fails_is_raised_before_anything_is_said(pair, heard):
    owner, _ = pair
    owner.publish(prompt(16, 708), [0, 1, 2, 3])
    pools = (owner.market._control.pool, owner.market._control.staging)
    epochs, seen = [pool.generations.epoch for pool in pools], []
    client = owner.market._control._client

    def retire(*_arguments):
        seen.append([pool.generations.epoch for pool in pools])

    client.retire = retire
    owner.market._control.fail_closed("a test")
    assert len(seen) == 2
    assert all(after > before for each in seen for after, before in zip(each, epochs, strict=True))


# ---- a dead block in the middle of a hit


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("dead", [0, 1, 3])
def test_a_block_that_is_dead_at_fetch_ends_it(pair, staged, dead, monkeypatch):
    owner, reader = pair
    tokens = prompt(16, 710 + dead)
    owner.publish(tokens, [0, 1, 2, 3], staged=staged)
    hit = matched(reader, tokens)
    owner.market._control.retire([dead], staged=staged)
    copied = []

    def copy(source, slots, *arguments, real=cpu.copy_blocks, **options):
        copied.extend(slots.tolist())
        real(source, slots, *arguments, **options)

    monkeypatch.setattr(cpu, "copy_blocks", copy)
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    assert moved.wait() == dead
    assert moved.valid.tolist() == [block < dead for block in range(4)]
    assert len(copied) == dead, "nothing is copied that cannot count"


@pytest.fixture
def in_two_pools(pair, market_address):
    """A hit whose first two blocks are in one pool, and whose others are in another one; and who owns the first."""
    owner, reader = pair
    tokens, second = prompt(16, 720), ModelEngine(market_address)
    second.publish(tokens, [0, 1, 2, 3])
    second.market.retire([0, 1])
    owner.publish(tokens[: 2 * BLOCK], [0, 1])
    hit = matched(reader, tokens)
    assert [len(run) for run in hit.runs] == [2, 2]
    yield reader, owner, second, hit, tokens
    second.close()


def test_blocks_of_two_pools_go_where_they_belong(in_two_pools):
    reader, _, _, hit, tokens = in_two_pools
    assert reader.market.fetch(hit, [7, 6, 5, 4]).wait() == 4
    assert all(reader.holds(7 - block, tokens[: (block + 1) * BLOCK]) for block in range(4))
    assert reader.market.fetch(hit, [8, 9], first=1).wait() == 2
    assert all(reader.holds(7 + block, tokens[: (block + 1) * BLOCK]) for block in (1, 2))


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_block_in_the_first_of_two_pools_ends_the_fetch_of_both(in_two_pools, dead):
    reader, owner, _, hit, _ = in_two_pools
    before = counters.snapshot().get(CUT, 0)
    owner.market.retire([dead])
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    assert moved.wait() == dead
    assert moved.valid.tolist() == [block < dead for block in range(4)]
    assert counters.snapshot()[CUT] == before + 1


def test_a_dead_block_in_the_second_of_two_pools_ends_the_fetch_there(in_two_pools):
    reader, _, second, hit, _ = in_two_pools
    second.market.retire([2])
    moved = reader.market.fetch(hit, [4, 5, 6, 7])
    assert moved.wait() == 2
    assert moved.valid.tolist() == [True, True, False, False]


def test_a_pool_that_cannot_be_mapped_ends_the_fetch_of_what_follows(in_two_pools, monkeypatch):
    reader, owner, _, hit, _ = in_two_pools
    mappings, real, unmapped = reader.market._data.mappings, Mappings.of, owner.market._control.pool.id
    monkeypatch.setattr(mappings, "of", lambda pool, run: real(mappings, pool, run) if pool.pool != unmapped else None)
    assert reader.market.fetch(hit, [4, 5, 6, 7]).wait() == 0


def test_fetches_that_nobody_waits_for_do_not_pile_up(in_two_pools):
    reader, _, _, hit, _ = in_two_pools
    for _ in range(5 * KEPT_FETCHES):
        moved = reader.market.fetch(hit, [4, 5, 6, 7])
        until(lambda moved=moved: moved._started is None or moved._started.query())
    assert len(reader.market._data.mappings._fetches) <= KEPT_FETCHES
