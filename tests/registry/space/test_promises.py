"""Promises: what somebody is computing is known to all, and forgotten when it is settled or its engine goes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import News, Promise, Retire, Settle
from kvmarket.registry.space.news import put_in
from kvmarket.registry.space.promises import PROMISES_PER_POOL, Promises
from kvmarket.registry.space.space import Space
from tests.model_engine import BLOCK, ModelEngine, Peer, prompt, until
from tests.registry.space.test_space import SIZE, made


def promise(pool: str, number: int, tokens: list[int], tenant: str = "") -> Promise:
    return Promise(pool, tenant, np.asarray(tokens, np.int32).tobytes(), number)


def common(a: list[int], b: list[int]) -> int:
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same // SIZE


def test_the_longest_promise_of_another_counts():
    chance, promises, standing = random.Random(4), Promises(SIZE), {}
    for number in range(400):
        pool = chance.choice(("pa", "pb", "pc"))
        tokens = [chance.randrange(2) for _ in range(chance.randrange(9))]
        standing[pool, number] = (tokens, tenant := chance.choice(("", "t")))
        promises.add(promise(pool, number, tokens, tenant))
        for known in chance.sample(sorted(standing), min(len(standing), chance.randrange(3))):
            promises.settle(*known)
            del standing[known]
        wanted, mine = [chance.randrange(2) for _ in range(9)], chance.choice(("pa", "pb"))
        expected = [common(wanted, t) for (p, _), (t, owner) in standing.items() if p != mine and owner == "t"]
        assert promises.blocks(np.array(wanted, np.int32), "t", {mine}) == max(expected, default=0)
    for pool in ("pa", "pb", "pc"):
        promises.drop(pool)
    assert list(promises) == []
    assert not promises._by_head


def test_there_is_a_bound():
    promises = Promises(SIZE)
    for number in range(PROMISES_PER_POOL + 10):
        promises.add(promise("pa", number, [number, 0]))
    assert [each.number for each in promises] == list(range(10, PROMISES_PER_POOL + 10))


def put(space: Space, news: News) -> None:
    """Do all that `news` says."""
    for _ in put_in(space, news):
        pass


def test_a_space_takes_them_from_its_pools_only():
    space = made("pa", "pb")
    put(space, promise("pa", 1, [1, 2, 3, 4]))
    with pytest.raises(MessageError, match="not known"):
        put(space, promise("other", 1, [1, 2]))
    with pytest.raises(MessageError, match="whole number"):
        put(space, Promise("pa", "", b"12345", 2))
    tokens = np.array([1, 2, 3, 4, 5, 6], np.int32)
    assert space.promises.blocks(tokens, "", ()) == 2
    assert promise("pa", 1, [1, 2, 3, 4]) in list(space.promises), "who joins later hears of it"
    put(space, Settle("pa", 1))
    put(space, Settle("pa", 77))
    assert space.promises.blocks(tokens, "", ()) == 0
    for end in (lambda: put(space, Retire("pa", None)), lambda: space.drop_pool("pa")):
        put(space, promise("pa", 3, [1, 2]))
        end()
        assert list(space.promises) == []


def test_engines_hear_of_each_others_promises(market_address):
    peer = Peer(market_address)
    engine = ModelEngine(market_address)
    tokens = prompt(4 * BLOCK, 5)
    number = engine.promise(tokens[: 3 * BLOCK])
    until(lambda: peer.promised(tokens) == 3)
    assert engine.promised(tokens) == 0, "one's own does not count"
    late = ModelEngine(market_address)
    assert late.promised(tokens) == 3
    engine.market._control.settle(number)
    until(lambda: peer.promised(tokens) == 0)
    peer.promise(tokens)
    until(lambda: engine.promised(tokens) == 4)
    peer.kill()
    until(lambda: engine.promised(tokens) == 0)
    engine.close()
    late.close()
