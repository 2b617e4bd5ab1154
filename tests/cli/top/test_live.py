"""`kvmarket top` as it runs: waiting, following a market over its end, once, and as a comparison."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from kvmarket.cli.top import live, top
from kvmarket.errors import AddressError
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener
from tests.cli.shown import WIDTH
from tests.model_engine import until


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is on the screen: a test empties it when it has looked."""
    file = io.StringIO()
    monkeypatch.setattr(
        live, "Console", lambda: Console(file=file, width=WIDTH, force_terminal=True, color_system=None)
    )
    return file


def taken(terminal: io.StringIO) -> str:
    """What was shown since the last call, without the ends of lines."""
    shown = terminal.getvalue().replace("\n", "")
    terminal.seek(0)
    terminal.truncate()
    return shown


def kill(place: Address) -> None:
    """End the service of a market at once."""
    os.kill(live.ask_status(place).service.pid, signal.SIGKILL)
    until(lambda: not place.service_lives())


def test_it_waits_for_a_market_and_follows_it_over_its_end(
    own_address: str, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    place, seen = Address(own_address), []
    steps = iter([lambda: start_service(place), lambda: kill(place), lambda: start_service(place), lambda: kill(place)])

    def sleep(seconds: float) -> None:
        assert seconds == 5.0
        seen.append(taken(terminal))
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(live, "time", SimpleNamespace(sleep=sleep))
    top(own_address, 5.0, once=False)
    assert len(seen) == 5
    waiting, serving = f"waiting for a market at {own_address}", f"at {own_address}0 blocks on offer"
    assert [waiting in each for each in seen] == [True, False, True, False, True]
    assert [serving in each.replace(" " * 3, "") for each in seen] == [False, True, False, True, False]
    assert "it starts with the first engine that connects" in seen[0]


def test_no_service_is_an_error_where_nobody_waits(own_address: str, terminal: io.StringIO):
    for options in ({"once": True}, {"once": False, "why": True}):
        with pytest.raises(AddressError, match=r"no service at .*/s; .*first engine"):
            top(own_address, 1.0, **options)
    assert taken(terminal) == ""


def test_a_mistyped_address_is_told_of_the_markets_beside_it(own_address: str, terminal: io.StringIO):
    mistyped = own_address + "typo"
    listener = Listener(Address(own_address))
    said = f"another market lives at {own_address}"
    try:
        with pytest.raises(AddressError, match=said):
            top(mistyped, 1.0, once=True)
        file = io.StringIO()
        Console(file=file, width=WIDTH).print(live._look(Address(mistyped)))
        assert f"waiting for a market at {mistyped}" in file.getvalue() and said in file.getvalue()
    finally:
        listener.close()


def test_a_market_is_shown_once_with_the_others(
    market_address: str, own_address: str, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    other = Address(str(Path(market_address).with_name("other")))
    listener = Listener(other)
    try:
        top(market_address, 1.0, once=True)
        shown = taken(terminal)
        assert f"service {os.getpid()} at {market_address}" in shown and f"another market lives at {other}" in shown
        top(market_address, 1.0, once=False, why=True)
        assert "no engine has joined" in taken(terminal)
    finally:
        listener.close()
