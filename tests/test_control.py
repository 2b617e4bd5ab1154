"""The control half by itself: what it is given may change, and what it offers may be crowded out."""

from __future__ import annotations

import numpy as np

from kvmarket import counters
from kvmarket.registry.node import OFFERS_PER_BLOCK
from tests.model_engine import BLOCK, ModelEngine, Peer, matched, prompt, until


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
    given, control = tokens.copy(), engine.market._control
    assert control.offer(given, [0], control.generations([0])) == 1
    given[:] = 7
    assert control.match(tokens).blocks == 1
    assert control.match(given).blocks == 0
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
    engine.close()
