"""`kvmarket top` as it runs: waiting, following a market over its end, once, and as a comparison."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from kvmarket.cli.app import app
from kvmarket.cli.top import live, top
from kvmarket.errors import AddressError, VersionError
from kvmarket.registry.client.launch import start_service
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener
from tests.cli.shown import WIDTH, lines_of
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
        shown = taken(terminal)
        assert "no engine has joined" in shown and f"another market lives at {other}" in shown
    finally:
        listener.close()


def test_a_service_of_another_version_is_waited_for_too(own_address: str, monkeypatch: pytest.MonkeyPatch):
    """Its engines leave it some day; where those of this version meet meanwhile is said."""

    def fail(place: Address, *, facts: bool = False) -> None:
        raise VersionError("the other side speaks kvmarket/1")

    monkeypatch.setattr(live, "ask_status", fail)
    listener = Listener(Address(own_address + ".9"))
    try:
        lines = lines_of(live._look(Address(own_address)))
        assert lines == [
            f"waiting for a market at {own_address}",
            "the other side speaks kvmarket/1",
            f"engines that speak kvmarket/9 meet at {own_address}.9",
        ]
        with pytest.raises(VersionError, match=r"kvmarket/1; engines that speak kvmarket/9 meet at .*\.9"):
            top(own_address, 1.0, once=True)
    finally:
        listener.close()


def test_the_command_line_has_these_options(market_address: str, own_address: str):
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["top", *arguments])

    assert "no engine has joined" in run("--why", "--address", market_address).output
    shown = run("--once", "--address", market_address)
    assert shown.exit_code == 0 and f"at {market_address}" in shown.output.replace("\n", "")
    assert isinstance(run("--once", "--address", own_address).exception, AddressError)
    assert run("--interval", "0", "--address", market_address).exit_code == 2, "it would ask without end"
