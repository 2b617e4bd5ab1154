"""Engines in containers that share nothing but a directory: blocks go between them, and the end of one is heard."""

from __future__ import annotations

import time

import pytest

from kvmarket.cli.top import ask_status
from kvmarket.errors import AddressError
from kvmarket.processes.shared_file import pid_namespace
from kvmarket.registry.protocol.address import Address
from tests.container import Container, apart
from tests.model_engine import ModelEngine, prompt, until

pytestmark = pytest.mark.skipif(apart() is None, reason="this user may make no namespaces")
SLOTS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def start():
    """Starts engines in containers of their own."""
    started: list[Container] = []

    def start(address: str) -> Container:
        started.append(Container(address, staging_bytes=1 << 16))
        assert started[-1].namespace != pid_namespace()
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture(scope="module")
def first(start, market_address):
    """One in a container, which stays."""
    return start(market_address)


@pytest.fixture
def engine(market_address):
    """One beside us."""
    engine = ModelEngine(market_address)
    yield engine
    engine.market.close()


def comes(engine: Container, tokens: list[int], slots: list[int], blocks: int) -> None:
    """The engine gets these blocks, in a moment; it checks each byte itself."""
    until(lambda: engine.ask("blocks", tokens) == blocks)
    assert engine.ask("take", tokens, slots) == blocks


def service_of(address: str) -> int:
    """The PID namespace of the service, 0 while none answers."""
    try:
        return ask_status(Address(address)).service.namespace
    except AddressError:
        return 0


def test_blocks_go_in_and_out(first, engine):
    first.ask("publish", tokens := prompt(16, 1), SLOTS)
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert engine.take(tokens, SLOTS) == 4
    engine.publish(others := prompt(16, 2), [4, 5, 6, 7])
    comes(first, others, [8, 9, 10, 11], 4)
    first.ask("publish", packed := prompt(16, 3), [12, 13, 14, 15], True)
    until(lambda: engine.market.match(packed).blocks == 4)
    assert engine.take(packed, [8, 9, 10, 11]) == 4, "from the staging pool"


def test_between_two_containers_until_one_is_killed(start, first, engine, market_address):
    engine.publish(standing := prompt(16, 4), SLOTS)
    until(lambda: first.ask("blocks", standing) == 4)  # it has the memory of all who are there
    before = first.ask("descriptors")
    killed = start(market_address)
    assert killed.ask("take", standing, [4, 5, 6, 7]) == 4, "the memory of who was there before came while it joined"
    assert not any(name.startswith("pool_") for name in killed.ask("counters"))
    killed.ask("publish", tokens := prompt(16, 5), SLOTS)
    comes(first, tokens, SLOTS, 4)
    mapped = first.ask("mapped")
    assert first.ask("descriptors") > before
    killed.kill()
    began = time.monotonic()
    until(lambda: first.ask("blocks", tokens) == 0 and first.ask("mapped") == mapped - 1, seconds=10)
    print(f"its end was heard of within {time.monotonic() - began:.2f} s")
    until(lambda: first.ask("descriptors") <= before)


def test_the_container_of_the_service_ends(start, own_address):
    """Another engine starts it anew, in its own container; what was on offer stays so."""
    killed = start(own_address)
    assert service_of(own_address) == killed.namespace
    other, engine = start(own_address), ModelEngine(own_address)
    other.ask("publish", tokens := prompt(16, 6), SLOTS)
    until(lambda: engine.market.match(tokens).blocks == 4)
    assert engine.take(tokens, SLOTS) == 4
    killed.kill()
    assert engine.take(tokens, [4, 5, 6, 7]) == 4
    until(lambda: service_of(own_address) in (other.namespace, pid_namespace()))
    other.ask("publish", later := prompt(16, 7), [8, 9, 10, 11])
    until(lambda: engine.market.match(later).blocks == 4)
    assert engine.take(later, [8, 9, 10, 11]) == 4
    engine.market.close()
