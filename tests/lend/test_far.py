"""Memory of the host behind a lender's memory that engines read faster: it keeps more, and is read last."""

from __future__ import annotations

from unittest.mock import patch

import torch

from kvmarket.errors import TransportError
from kvmarket.fingerprint import Fingerprint
from kvmarket.lend.lending import Lending
from kvmarket.market.control import ControlHalf
from kvmarket.market.offer import PoolDescriptor
from kvmarket.transport import ShmMemory
from tests.lend.lends import churn, fill, lending
from tests.model_engine import BLOCK, FACTS, ModelEngine, prompt, until


def sources(engine: ModelEngine, tokens: list[int]) -> list[str]:
    """Where a match finds the blocks, a word a run."""
    hit = engine.market.match(tokens)
    kinds = {name: ("far" if pool.far else "lent") if pool.lent else "engine" for name, pool in hit.pools.items()}
    return [kinds[run.pool] for run in hit.runs]


def test_the_same_blocks_are_kept_in_both_and_read_where_that_is_faster(market_address, two):
    computes, reads = two
    tokens = prompt(4 * BLOCK, 7)
    with lending(market_address, 8, far=8) as lender:
        computes.publish(tokens, [0, 1, 2, 3])
        until(lambda: lender.at_rest() and [len(each) for each in lender.both] == [4, 4])
        churn(computes)
        until(lambda: reads.market.match(tokens).blocks == 4)
        assert sources(reads, tokens) == ["lent"]
        assert reads.take(tokens, [0, 1, 2, 3]) == 4


def test_what_the_faster_memory_has_given_up_is_read_from_the_other(market_address, two):
    computes, reads = two
    with lending(market_address, 4, far=32) as lender:
        for seed in range(4):
            fill(computes, seed)
            until(lambda: lender.at_rest())
        until(lambda: [len(each) for each in lender.both] == [4, 16] and lender.at_rest())
        churn(computes)
        found = []
        for seed in range(4):
            tokens = prompt(4 * BLOCK, seed)
            until(lambda tokens=tokens: reads.market.match(tokens).blocks == 4)
            found += sources(reads, tokens)
            assert reads.take(tokens, [0, 1, 2, 3]) == 4
            churn(reads)
        assert sorted(found) == ["far", "far", "far", "lent"]


def test_each_kind_of_memory_has_lenders_of_its_own(market_address, two):
    """What is kept is shared out among the lenders of one kind of memory."""
    client = two[1].market._control._client
    with lending(market_address, 8):
        until(lambda: client.lenders(far=False))
        assert not client.lenders(far=True)
    with lending(market_address, 8, far=8):
        until(lambda: client.lenders(far=False) and client.lenders(far=True))


def test_what_only_the_faster_memory_still_has_is_copied_from_there(market_address, two, monkeypatch):
    """Memory of the same process is read directly: CUDA cannot map it."""
    computes, reads = two
    tokens, turn, held = prompt(4 * BLOCK, 9), Lending.turn, [True]
    monkeypatch.setattr(Lending, "turn", lambda self, more: not (self.far and held) and turn(self, more))

    def refused(self, device):
        raise TransportError("memory of the same process cannot be mapped")

    monkeypatch.setattr(ShmMemory, "map", refused)
    with lending(market_address, 8, far=8) as lender:
        computes.publish(tokens, [0, 1, 2, 3])
        until(lambda: len(lender.both[0]) == 4 and not lender.both[0]._pulls)
        until(lambda: sources(reads, tokens) == ["lent"])
        computes.market._control.retire([0, 1, 2, 3], take_down=False)
        held.clear()
        until(lambda: lender.at_rest() and [len(each) for each in lender.both] == [4, 4])


def test_a_block_is_kept_once_in_far_memory(market_address, two):
    computes, _ = two
    tokens = prompt(4 * BLOCK, 10)
    with lending(market_address, 8, far=8) as one:
        computes.publish(tokens, [0, 1, 2, 3])
        until(lambda: one.at_rest() and [len(each) for each in one.both] == [4, 4])
        with lending(market_address, 8, far=8) as other:
            until(lambda: other.at_rest() and [len(each._elsewhere) for each in other.both] == [4, 4])
            assert [len(each) for each in other.both] == [0, 0], "though an engine has the blocks still"


def test_an_engine_maps_far_memory_before_it_needs_it(market_address, two):
    """Also what came before the engine did, and each segment once; never memory that is mapped in no time."""
    asked: list[tuple[ShmMemory, torch.device]] = []
    with patch.object(ShmMemory, "map_ahead", lambda *call: asked.append(call)):
        with lending(market_address, 4, far=8) as lender:
            until(lambda: len(asked) == len(two))
            third = ModelEngine(market_address)
            until(lambda: len(asked) == len(two) + 1)
            (far,) = lender.both[1]._segments
            assert {memory for memory, _ in asked} == {far.pool.descriptor.ranks[0][1]}
            assert {device.type for _, device in asked} == {"cpu"}
            third.market._data.mappings._mapped[far.pool.id] = None
            third.market._data.map_ahead([far.pool.descriptor])
            del third.market._data.mappings._mapped[far.pool.id]
            third.close()
        assert len(asked) == 3, "near memory, and that of engines, is not, nor what is mapped"


def test_who_cannot_be_called_back_asks_for_far_pools(market_address, two):
    """As the hook's scheduler side does, which tells its workers."""
    engine = two[0].market
    own = engine._control.pool.descriptor.stages
    other = ControlHalf(own, Fingerprint.of(**FACTS), address=market_address)
    with lending(market_address, 4, far=8) as lender:
        told: list[PoolDescriptor] = []
        until(lambda: told.extend(other.take_far()) or told)
        (far,) = lender.both[1]._segments
        assert [pool.pool for pool in told] == [far.pool.id] and other.take_far() == []
        assert all(lent._member._on_far is None for lent in lender.both), "a lender maps what it copies"
    other.close()
