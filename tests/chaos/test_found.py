"""What the chaos has found, each by itself."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from pathlib import Path

from kvmarket.cli.top import ask_status
from kvmarket.errors import RegistryError
from kvmarket.registry.protocol.address import Address
from tests.model_engine import ModelEngine, Peer, matched, prompt, until


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def members(address: str) -> list[int]:
    try:
        return [member.pid for member in ask_status(Address(address)).members]
    except RegistryError:
        return []


def leave(peer: Peer) -> None:
    peer.kill()
    peer._pipe.close()
    peer.process.close()


def test_blocks_that_stand_may_be_published_again_though_one_before_them_was_retired(market_address):
    engine, tokens = ModelEngine(market_address), prompt(16, 101)
    engine.publish(tokens, [0, 1, 2, 3])
    engine.market.retire([0])
    try:
        assert engine.market.publish(tokens, [0, 1, 2, 3]) == 4, "their bytes never changed"
    finally:
        engine.close()


def test_mappings_go_when_an_engine_and_the_service_die_together(own_address):
    reader, tokens = ModelEngine(own_address), prompt(16, 102)
    leave(Peer(own_address))  # the fork server stays, with descriptors of its own
    before = descriptors()
    peer = Peer(own_address)
    peer.publish(tokens, [0, 1, 2, 3])
    matched(reader, tokens)
    assert reader.take(tokens, [0, 1, 2, 3]) == 4
    os.kill(ask_status(Address(own_address)).service.pid, signal.SIGKILL)
    leave(peer)
    try:
        until(lambda: os.getpid() in members(own_address))
        until(lambda: descriptors() <= before, 5)
    finally:
        reader.close()


def test_a_closed_market_holds_nothing(market_address):
    engine = ModelEngine(market_address)
    gc.disable()
    try:
        engine.close()
        market = weakref.ref(engine.market)
        del engine.market
        assert market() is None
    finally:
        gc.enable()
