"""The control half by itself: what it is given may change, and what it offers may be crowded out."""

from __future__ import annotations

import numpy as np

from kvmarket.registry.node import OFFERS_PER_BLOCK
from tests.model_engine import BLOCK, ModelEngine, matched, prompt


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
