"""The four verbs, between real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import kvmarket
from kvmarket import counters
from kvmarket.cli.top import ask_status
from kvmarket.errors import ClosedError
from kvmarket.registry.client import client
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import MAX_MESSAGE_BYTES
from tests.model_engine import BLOCK, FACTS, ModelEngine, Peer, prompt, until


def test_a_peers_prefix(engine, peer):
    tokens = prompt(30)
    assert peer.publish(tokens, [7, 3, 9, 1, 0, 30, 5]) == 7
    until(lambda: engine.market.match(tokens).blocks == 7)
    hit = engine.market.match(tokens)
    assert (hit.tokens, hit.blocks) == (28, 7)
    assert engine.take(tokens, [5, 6, 7, 8, 9, 10, 11]) == 7


def test_part_of_a_hit(engine, peer):
    tokens = prompt(24)
    peer.publish(tokens, list(range(6)))
    until(lambda: engine.market.match(tokens).blocks == 6)
    assert engine.take(tokens, [20, 21, 22], first=2) == 3


def test_longest_prefix_and_exact_tokens(engine, peer):
    tokens = prompt(16)
    peer.publish(tokens, [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert engine.market.match(tokens[:11]).blocks == 2
    assert engine.market.match([*tokens[:9], 5, *tokens[10:]]).blocks == 2
    assert engine.market.match([tokens[0] ^ 1, *tokens[1:]]).blocks == 0
    assert engine.market.match([]).blocks == 0


def test_an_imported_prefix_is_offered_on(market_address):
    first, second, third = (Peer(market_address) for _ in range(3))
    try:
        tokens = prompt(20)
        first.publish(tokens, [0, 1, 2, 3, 4])
        until(lambda: second.take(tokens, [10, 11, 12, 13, 14]) == 5)
        second.publish(tokens, [10, 11, 12, 13, 14])
        first.kill()
        until(lambda: third.take(tokens, [1, 3, 5, 7, 9]) == 5)
    finally:
        second.kill()
        third.kill()


def test_one_process_may_match_its_own_offers(engine):
    tokens = prompt(12)
    engine.publish(tokens, [4, 5, 6])
    assert engine.take(tokens, [1, 2, 3]) == 3


def test_several_markets_in_one_process(market_address, engine):
    other = ModelEngine(market_address)
    tokens = prompt(12)
    engine.publish(tokens, [4, 5, 6])
    until(lambda: other.take(tokens, [0, 1, 2]) == 3)
    other.close()


def test_another_tenant_or_fingerprint_never_hits(market_address, engine):
    tokens = prompt(8)
    engine.publish(tokens, [0, 1])
    until(lambda: engine.market.match(tokens).blocks == 2)
    for options in ({"tenant": "somebody else"}, {"facts": {**FACTS, "revision": 2}}):
        other = ModelEngine(market_address, **options)
        assert other.market.match(tokens).blocks == 0
        other.close()


def test_retired_blocks_end_the_match(engine):
    tokens = prompt(16)
    engine.publish(tokens, [0, 1, 2, 3])
    engine.market.retire([2])
    assert engine.market.match(tokens).blocks == 2


def test_staged_blocks_outlive_their_slots(market_address):
    owner, reader = ModelEngine(market_address, staging_bytes=10 * 2 * 2 * BLOCK * 24 * 2), ModelEngine(market_address)
    tokens = prompt(20)
    assert owner.publish(tokens, [0, 1, 2, 3, 4], staged=True) == 5
    for slot in range(5):
        owner.market.retire([slot])
        owner.write(slot, [slot])
    until(lambda: reader.take(tokens, [9, 8, 7, 6, 5]) == 5)
    others = [prompt(16, seed) for seed in (1, 2, 3)]
    for other in others:
        assert owner.publish(other, [10, 11, 12, 13], staged=True) == 4
    until(lambda: reader.take(others[-1], [0, 1, 2, 3]) == 4)
    assert reader.market.match(tokens).blocks == 0, "the ring has gone round over the first prefix"
    assert owner.publish(prompt(80, 9), list(range(20)), staged=True) == 10, "no more than the staging pool holds"
    owner.close()
    reader.close()


def test_layouts_of_one_logical_shape_share(market_address):
    """K and V apart, NHD, and side by side with heads first: one logical shape, three layouts in memory."""
    slots, heads, dim = 8, 3, 8
    apart = [(torch.zeros(slots, BLOCK, heads, dim), torch.zeros(slots, BLOCK, heads, dim)) for _ in range(2)]
    together = [torch.zeros(2, slots, BLOCK, heads, dim) for _ in range(2)]
    side = [torch.zeros(slots, heads, BLOCK, 2 * dim) for _ in range(2)]
    views = [(t[..., :dim].transpose(1, 2), t[..., dim:].transpose(1, 2)) for t in side]
    caches = [
        kvmarket.PagedCache(apart, block_size=BLOCK),
        kvmarket.PagedCache(together, block_size=BLOCK, slot_dim=1),
        kvmarket.PagedCache(views, block_size=BLOCK),
    ]
    markets = [kvmarket.connect(c, kvmarket.Fingerprint.of(model="m"), address=market_address) for c in caches]
    tokens = prompt(8)
    for k, v in apart:
        k.random_()
        v.random_()
    markets[0].publish(tokens, [3, 5])
    for market, slot_pair in ((markets[1], [0, 7]), (markets[2], [6, 1])):
        until(lambda market=market: market.match(tokens).blocks == 2)
        assert market.fetch(market.match(tokens), slot_pair).wait() == 2
    for (k, v), both, (k2, v2) in zip(apart, together, views, strict=True):
        assert torch.equal(k[[3, 5]], both[0][[0, 7]])
        assert torch.equal(v[[3, 5]], both[1][[0, 7]])
        assert torch.equal(k[[3, 5]], k2[[6, 1]])
        assert torch.equal(v[[3, 5]], v2[[6, 1]])
    for market in markets:
        market.close()


def test_offers_of_a_killed_engine_vanish_within_a_second(engine, market_address):
    for attempt in range(3):
        peer = Peer(market_address)
        tokens = prompt(16, attempt)
        peer.publish(tokens, [0, 1, 2, 3])
        until(lambda tokens=tokens: engine.market.match(tokens).blocks == 4)
        peer.kill()
        assert until(lambda tokens=tokens: engine.market.match(tokens).blocks == 0) < 1.0


def test_an_owner_killed_after_the_match(engine, peer):
    tokens = prompt(16)
    peer.publish(tokens, [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    hit = engine.market.match(tokens)
    peer.kill()
    moved = engine.market.fetch(hit, [0, 1, 2, 3])
    valid = moved.wait()
    assert all(engine.holds(slot, tokens[: (slot + 1) * BLOCK]) for slot in range(valid))


def test_a_dead_owners_memory_is_let_go(engine, peer):
    tokens = prompt(16)
    peer.publish(tokens, [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert engine.take(tokens, [0, 1, 2, 3]) == 4
    inodes = {
        str(file.inode) for pool in engine.market.match(tokens).pools.values() for file in pool.stages[0].ranks[0].files
    }

    def mapped() -> bool:
        engine.market.match(tokens)
        rows = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
        return any(row[4] in inodes and "torch_" in row[-1] for row in rows)

    assert mapped()
    peer.kill()
    until(lambda: not mapped())


def test_the_service_killed_and_back(own_address):
    engine, peer = ModelEngine(own_address), Peer(own_address)
    tokens = prompt(16)
    peer.publish(tokens, [0, 1, 2, 3])
    until(lambda: engine.market.match(tokens).blocks == 4)
    place = engine.market._control._client.home.address
    assert isinstance(place, Address)
    before = counters.snapshot().get("service_lost{the service of the market died; joining again}", 0)
    os.kill(ask_status(place).service.pid, 9)
    assert engine.take(tokens, [0, 1, 2, 3]) == 4, "what was offered before is still found"
    lost = "service_lost{the service of the market died; joining again}"
    until(lambda: counters.snapshot().get(lost, 0) == before + 1)
    until(lambda: place.service_lives() and len(ask_status(place).members) == 2, seconds=60)
    until(lambda: ask_status(place).blocks == 4)  # all that stands was offered again
    peer.publish(prompt(16, 1), [4, 5, 6, 7])
    until(lambda: engine.take(prompt(16, 1), [0, 1, 2, 3]) == 4)

    engine.close()
    peer.kill()


@pytest.mark.parametrize("talks", [True, False])
def test_a_connection_that_broke_is_made_again(market_address, peer, talks):
    engine = ModelEngine(market_address)
    engine.publish(tokens := prompt(16), [0, 1, 2, 3])
    connection = engine.market._control._client._connection
    with engine.market._control._client._lock:  # else the watching thread may say something in the middle of it
        connection.socket.send(bytes(MAX_MESSAGE_BYTES + 1))  # the service hangs up on who sends such a thing
    if talks:
        engine.publish(tokens := prompt(16, 1), [4, 5, 6, 7])
    until(lambda: engine.market._control._client._connection is not connection)
    until(lambda: peer.take(tokens, [0, 1, 2, 3]) == 4)
    peer.publish(later := prompt(16, 2), [4, 5, 6, 7])
    until(lambda: engine.take(later, [4, 5, 6, 7]) == 4)
    engine.close()


def test_an_engine_that_never_waits_hears_of_all_soon(engine, peer, monkeypatch):
    """Its thread leaves Python's lock to others for one turn in 5 ms only."""
    monkeypatch.setattr(client, "DRAIN_SECONDS", 0.0)  # a match does nothing of it itself
    prompts = [prompt(BLOCK, seed) for seed in range(3000)]
    peer.tell("publish_all", prompts)
    start = time.monotonic()
    while engine.market._control.match(prompts[-1]).blocks == 0:
        assert sum(range(100_000)) and time.monotonic() < start + 40  # some 8 s on two quiet cores
    peer.hear()


def test_the_service_ends_with_its_last_engine(own_address):
    ModelEngine(own_address).close()
    until(lambda: not list(Path(own_address).parent.iterdir()), seconds=30)


def test_the_service_heeds_no_terminal(own_address):
    engine = ModelEngine(own_address)
    service = ask_status(Address(own_address)).service.pid
    assert os.getpgid(service) == service, "Ctrl-C would end it"
    os.kill(service, signal.SIGHUP)
    time.sleep(0.1)
    assert ask_status(Address(own_address)).service.pid == service
    engine.close()


def test_eight_at_once_start_one_service(own_address):
    engines: list[ModelEngine] = []
    threads = [threading.Thread(target=lambda: engines.append(ModelEngine(own_address))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ask_status(Address(own_address)).members) == 8
    for engine in engines:
        engine.close()


def test_closed(market_address):
    engine = ModelEngine(market_address)
    tokens = prompt(8)
    with engine.market as market:
        engine.publish(tokens, [0, 1])
        hit = market.match(tokens)
    market.close()
    for call in (lambda: market.match(tokens), lambda: market.publish(tokens, [0, 1]), lambda: market.retire([0])):
        with pytest.raises(ClosedError):
            call()
    other = ModelEngine(market_address)
    assert other.market.fetch(hit, [0, 1]).wait() == 0, "a closed market's offers are dead"
    other.close()


def test_done_polls(engine):
    tokens = prompt(16)
    engine.publish(tokens, [0, 1, 2, 3])
    moved = engine.market.fetch(engine.market.match(tokens), [10, 11, 12, 13])
    deadline = time.monotonic() + 20
    while not moved.done():
        assert time.monotonic() < deadline
    assert moved.wait() == 4
    assert engine.market.fetch(engine.market.match(tokens), []).wait() == 0
