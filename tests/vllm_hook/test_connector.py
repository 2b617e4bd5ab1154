"""The connector itself, without an engine: what it does where its sides raise, and how it comes into the market."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from kvmarket import counters
from kvmarket.errors import AddressError, LayoutError
from tests.vllm_hook.scheduler.fakes import BLOCK, FakeControl
from vllm_hook.engine import facts
from vllm_hook.engine.limits import Settings
from vllm_hook.metadata import RankMemory
from vllm_hook.scheduler.side import SchedulerSide

pytest.importorskip("vllm")

from vllm_hook.connector import KVMarketConnector
from vllm_hook.metrics.alone import Alone
from vllm_hook.metrics.first_peer import FirstPeer

OFF = "kvmarket is off: "
OFF_FOR_NOW = "kvmarket is off for now: it could not join the market; "


class Connector(KVMarketConnector):
    """One of a scheduler of one rank, whose market is a fake."""

    def __init__(self, tenant: str = "") -> None:
        self._settings = Settings(tenant=tenant)
        self._scheduler = SchedulerSide(BLOCK, 1, tenant=tenant)
        self._worker = None
        self._first_peer = FirstPeer(self._on, Alone().say)
        self._compared = {"model": "m"}
        self.closed: Exception | None = None

    def connect(self, ranks: Any) -> Any:
        if self.closed is not None:
            raise self.closed
        return FakeControl()

    def said(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """What the log says after the memory of its rank is known."""
        with caplog.at_level(logging.INFO, "vllm.kvmarket"):
            self.set_xfer_handshake_metadata({0: self.memory})
        return [record.getMessage() for record in caplog.records if record.name == "vllm.kvmarket"]

    memory = RankMemory(None, None)


@pytest.fixture(autouse=True)
def without_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "stages_of", lambda ranks: [])


def test_it_says_that_it_is_on(caplog: pytest.LogCaptureFixture):
    (said,) = Connector().said(caplog)
    assert said.startswith("kvmarket is on: vLLM ") and said.endswith("1 rank(s), 4 tokens a block; no peer engine yet")


def test_it_says_why_it_is_off_for_now(caplog: pytest.LogCaptureFixture):
    connector = Connector()
    connector.closed = AddressError("the service did not answer; start it by hand")
    (said,) = connector.said(caplog)
    assert said.startswith(OFF_FOR_NOW) and said.endswith(
        ": AddressError: the service did not answer; start it by hand"
    )
    assert connector._scheduler is not None and connector._scheduler._rejoin is not None
    connector.shutdown()


def unlike(ranks: Any) -> Any:
    raise LayoutError("ranks with different KV caches; use equal devices")


@pytest.mark.parametrize(
    "kind", ["a rank refuses", "ranks differ", "tenant too long", "tenant torn", "a fault of ours"]
)
def test_what_can_never_work_stays_off_and_says_why(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    connector = Connector({"tenant too long": "x" * 5000, "tenant torn": "\ud83d"}.get(kind, ""))
    if kind == "a rank refuses":
        connector.memory = RankMemory(None, None, refusal="no room")
    if kind == "ranks differ":
        monkeypatch.setattr(facts, "stages_of", unlike)
    if kind == "a fault of ours":
        monkeypatch.setattr(facts, "stages_of", lambda ranks: 1 / 0)
    expected = {
        "a rank refuses": "no room",
        "ranks differ": "ranks with different KV caches; use equal devices",
        "tenant too long": "tenant has 5000 characters, at most 4096 can be sent; give a hash of it",
        "tenant torn": "tenant is no text that can be sent: ",
        "a fault of ours": "it could not prepare to join the market; report the traceback that is logged with this: "
        "join: ZeroDivisionError: division by zero",
    }[kind]
    said = [each for each in connector.said(caplog) if each.startswith(OFF)]
    assert len(said) == 1 and said[0].startswith(OFF + expected), said
    assert connector._scheduler is not None and connector._scheduler._rejoin is None, "it tries, and never can"
    assert any(key.startswith(f"vllm_hook_off{{{expected}") for key in counters.snapshot())


def test_a_worker_that_cannot_say_what_it_has_takes_no_part():
    connector = Connector()
    worker = SimpleNamespace(refusal="")
    worker.refuse = lambda reason: setattr(worker, "refusal", reason)

    def handshake() -> RankMemory:
        if not worker.refusal:
            raise KeyError("an attention backend without a name")
        return RankMemory(None, None, refusal=worker.refusal)

    worker.handshake = handshake
    connector._worker = worker  # type: ignore[assignment]
    memory = connector.get_handshake_metadata()
    assert isinstance(memory, RankMemory) and memory.refusal == "get_handshake_metadata: KeyError"
