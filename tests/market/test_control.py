"""The control half by itself: what it is given may change, and what it offers may be crowded out."""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.cli.top import ask_status
from kvmarket.errors import ClosedError, LayoutError, SlotError
from kvmarket.registry.client import client
from kvmarket.registry.client.turns import Turns
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.trie.node import OFFERS_PER_BLOCK, Node
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until
from tests.scarcity import descriptors


def test_a_block_that_was_crowded_out_may_be_gone_on_from(market_address):
    """One block in more slots than it has room for offers: the first is no longer in the trie, but may stand."""
    engine, tokens = ModelEngine(market_address, slots=OFFERS_PER_BLOCK + 8), prompt(2 * BLOCK, 60)
    for slot in range(OFFERS_PER_BLOCK + 2):
        assert engine.publish(tokens[:BLOCK], [slot]) == 1
    last = OFFERS_PER_BLOCK + 7
    engine.write(last, tokens)
    assert engine.market.publish(tokens, [0, last]) == 2
    assert matched(engine, tokens).blocks == 2
    assert engine.take(tokens, [last - 2, last - 1]) == 2
    engine.close()


def test_tokens_may_be_reused_by_the_caller(market_address):
    engine, tokens = ModelEngine(market_address), np.array(prompt(BLOCK, 61), np.int32)
    before = counters.snapshot().get("blocks_offered", 0)
    given, slots = tokens.copy(), np.array([3])
    assert engine.market.publish(given, slots) == 1
    given[:], slots[:] = 7, 5
    assert engine.market.match(tokens).blocks == 1
    assert engine.market.match(given).blocks == 0
    assert engine.market.publish(tokens, [3]) == 1
    assert counters.snapshot().get("blocks_offered") == before + 1, "the ledger knows it as it was"
    engine.close()


def test_news_comes_by_itself_however_much_an_engine_sends_meanwhile(market_address, monkeypatch):
    """Sending uses the socket whose signs the watching thread waits for: none of them may get lost."""
    monkeypatch.setattr(client, "WATCH_SECONDS", 60.0)  # else it looks for itself
    busy, other = ModelEngine(market_address), ModelEngine(market_address)
    control, tokens = busy.market._control, prompt(2 * BLOCK, 62)
    control.match(tokens)
    for number in range(200):
        assert other.publish([number, *tokens[1:]], [number % 8, 8 + number % 8]) == 2
        for slot in range(20, 26):
            busy.publish([number, slot, *tokens[:BLOCK]][:BLOCK], [slot])
        wanted = [number, *tokens[1:]]
        until(lambda wanted=wanted: control.match(wanted).blocks == 2)
    busy.close()
    other.close()


def test_retired_offers_are_dead_before_they_are_taken_down(market_address):
    engine, tokens = ModelEngine(market_address), np.array(prompt(BLOCK, 62), np.int32)
    control = engine.market._control
    assert control.offer(tokens, [0], control.generations([0])) == 1
    control.retire([0], take_down=False)
    assert control.match(tokens).blocks == 0
    assert control.pool.ledger.slots().tolist() == [0], "taken down all the same"
    control.take_down([0])
    assert control.pool.ledger.slots().tolist() == []
    assert control.offer(tokens, [0], control.generations([0])) == 1
    assert control.match(tokens).blocks == 1
    engine.close()


def test_who_is_not_let_in_keeps_nothing_open(market_address):
    with closing(ModelEngine(market_address, facts={"model": "not let in"})):
        fingerprint = kvmarket.Fingerprint.of(model="not let in")

        def attempt() -> int:
            """How many files are open after an attempt to join with new memory."""
            cache = kvmarket.PagedCache([torch.zeros(4, 2, BLOCK, 25, dtype=torch.int16)], block_size=BLOCK)
            with pytest.raises(LayoutError):
                kvmarket.connect(cache, fingerprint, address=market_address)
            return descriptors()

        before = attempt()
        assert attempt() <= before, "fewer where a test before this one has only now let go"


def test_where_it_has_joined_is_told_as_the_service_names_it(own_address):
    one, other = ModelEngine(own_address), ModelEngine(own_address)
    (space,) = {member.space for member in ask_status(Address(own_address)).members}
    assert one.market._control.home.place == other.market._control.home.place == f"market {own_address}, space {space}"
    one.close()
    other.close()


def test_every_call_says_that_the_engine_steps(market_address, monkeypatch):
    """The watching thread takes short turns then."""
    calls = []
    monkeypatch.setattr(Turns, "called", lambda turns, now: calls.append(now))
    engine, tokens = ModelEngine(market_address), np.array(prompt(BLOCK, 62), np.int32)
    control = engine.market._control
    for call in (
        lambda: control.match(tokens),
        lambda: control.offer(tokens, [0], control.generations([0])),
        lambda: control.retire([0]),
        lambda: control.promise(tokens),
    ):
        calls.clear()
        call()
        assert calls
    engine.close()


def test_who_leaves_gives_its_memory_back_at_once(own_address):
    """The nodes of a trie name each other: left to Python's collector they would lie there for a long time."""
    engine, other = ModelEngine(own_address), ModelEngine(own_address)
    for number in range(20):
        engine.publish([number, *prompt(BLOCK, 62)[1:]], [number])
    for each in (engine, other):
        each.market.match(prompt(BLOCK, 62))  # puts in what it has just offered itself
        until(lambda each=each: each.market._control._client._replica.space.blocks == 20)
    assert len(engine.market._control.pool.ledger.slots()) == 20
    gc.collect()
    gc.disable()
    try:
        before = nodes()
        other.close()
        engine.close()
        assert before - nodes() > 2.5 * 20, "two replicas and the ledger of one of them, but for their roots"
    finally:
        gc.enable()


def test_nothing_of_who_has_left_waits_for_the_collector(own_address):
    engine = ModelEngine(own_address)
    control = engine.market._control
    left = [weakref.ref(each) for each in (control, control._client, control._client.home, control.pool)]
    gc.collect()
    gc.disable()
    try:
        engine.close()
        del engine, control
        assert [each() for each in left] == [None] * len(left)
    finally:
        gc.enable()


def nodes() -> int:
    return sum(type(each) is Node for each in gc.get_objects())


def test_another_engine_has_what_the_newest_offer_has_no_longer(own_address):
    """The newest offer is preferred; where it is dead and not taken down yet, an older one of the same block counts."""
    older, newer, reader = (ModelEngine(own_address) for _ in range(3))
    tokens = np.array(prompt(3 * BLOCK, 62), np.int32)
    older.publish(tokens, [4, 5, 6])
    until(lambda: reader.market.match(tokens).blocks == 3)
    newer.publish(tokens, [0, 1, 2])
    until(lambda: {run.pool for run in reader.market.match(tokens).runs} == {newer.market._control.pool.id})
    newer.market._control.retire([1], take_down=False)
    hit = reader.market.match(tokens)
    assert [run.slots.tolist() for run in hit.runs] == [[0], [5, 6]] and len(hit.pools) == 2
    for engine in (older, newer, reader):
        engine.close()


def test_peers_are_the_engines_of_the_same_space(own_address):
    one = ModelEngine(own_address)
    assert one.market._control.peers() == 0
    child = Peer(own_address)
    until(lambda: one.market._control.peers() == 1)
    child.kill()
    until(lambda: one.market._control.peers() == 0)
    one.close()


def test_offers_and_retirements_are_counted(market_address):
    engine = ModelEngine(market_address)
    tokens, control = prompt(4 * BLOCK, 62), engine.market._control

    def counted() -> tuple[int, int]:
        now = counters.snapshot()
        return now.get("blocks_offered", 0), now.get("blocks_retired", 0)

    offered, retired = counted()
    for _ in range(2):  # again is no news
        control.offer(np.array(tokens, np.int32), [0, 1, 2, 3], control.generations([0, 1, 2, 3]))
    assert counted() == (offered + 4, retired)
    for _ in range(2):
        control.retire([0, 1, 5])
    assert counted() == (offered + 4, retired + 2)
    control.offer(np.array(tokens, np.int32), [0, 1, 2, 3], control.generations([0, 1, 2, 3]))
    assert counted() == (offered + 8, retired + 2), "0 is news, and what follows it"
    more = np.array(tokens + prompt(2 * BLOCK, 63), np.int32)
    control.offer(more, [0, 1, 2, 3, 6, 7], control.generations([0, 1, 2, 3, 6, 7]))
    assert counted() == (offered + 10, retired + 2), "only what is new"
    engine.close()


def test_what_would_be_refused_later_is_refused_before(market_address):
    engine = ModelEngine(market_address)
    control, slots = engine.market._control, np.array([0, 1])
    control.offer(np.array(prompt(2 * BLOCK, 64), np.int32), slots, control.generations(slots))
    control.check_news(prompt(2 * BLOCK, 64), slots, control.generations(slots))
    with pytest.raises(SlotError, match="still on offer for other tokens"):
        control.check_news(prompt(2 * BLOCK, 65), slots, control.generations(slots))
    control.retire([0, 1])
    control.check_news(prompt(2 * BLOCK, 65), slots, control.generations(slots))
    assert control.match(prompt(2 * BLOCK, 65)).blocks == 0, "nothing was offered"
    engine.close()


def test_pools_that_have_gone_are_told_once(own_address):
    one, child = ModelEngine(own_address), Peer(own_address)
    child.publish(prompt(BLOCK, 66), [0])
    (pool,) = matched(one, prompt(BLOCK, 66)).pools
    child.kill()
    gone: list[str] = []
    until(lambda: gone.extend(one.market._control.take_gone()) or gone)
    assert gone == [pool] and one.market._control.take_gone() == []
    one.close()


def test_who_has_left_offers_nothing_and_may_go_on_retiring(market_address):
    """Whoever closes it knows nothing of the thread that retires; its descriptors may be somebody else's by now."""
    engine, tokens = ModelEngine(market_address), np.array(prompt(4 * BLOCK, 63), np.int32)
    control = engine.market._control
    assert engine.publish(tokens.tolist(), [0, 1, 2, 3]) == 4
    number, wake = control.promise(tokens), control._client._wake
    control.close()
    generations = control.generations([0, 1, 2, 3])
    taken = [os.eventfd(0, os.EFD_NONBLOCK)]
    while taken[-1] < wake:  # the lowest number that is free comes first
        taken.append(os.eventfd(0, os.EFD_NONBLOCK))
    assert wake in taken
    for call in (lambda: control.offer(tokens, [0, 1, 2, 3], generations), lambda: control.promise(tokens)):
        with pytest.raises(ClosedError, match="join again"):
            call()
    control.retire([0, 1])
    assert control.generations([0, 1]).tolist() == (generations[:2] + 1).tolist()
    control.take_down([0, 1])
    control.settle(number)
    control.fail_closed("a test")
    assert control.match(tokens).blocks == control.promised(tokens) == 0
    for descriptor in taken:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(descriptor)
        os.close(descriptor)
    engine.close()
