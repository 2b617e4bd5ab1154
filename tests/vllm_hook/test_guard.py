"""What raises in a hook is made harmless first, then counted and logged; what must get through gets through."""

from __future__ import annotations

import logging

import pytest

from kvmarket import counters
from vllm_hook.guard import Guard, nothing_to_close


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "shown", 0)


def fails(error: BaseException, where: str = "a hook") -> list[str]:
    """What `failed` hears, and what was counted by then."""
    heard: list[str] = []

    def failed(reason: str) -> None:
        heard.extend([reason, str(counters.snapshot().get(f"vllm_hook_failed{{{reason}}}", 0))])

    with Guard(where, failed):
        raise error
    return heard


def test_whoever_must_act_hears_before_it_is_counted():
    key = "vllm_hook_failed{a hook of this test: KeyError}"
    assert fails(KeyError("x"), "a hook of this test") == ["a hook of this test: KeyError", "0"]
    assert counters.snapshot()[key] == 1
    assert fails(KeyError("y"), "a hook of this test")[1] == "1"
    assert counters.snapshot()[key] == 2


def test_whoever_must_act_can_look_at_what_was_raised():
    seen: list[object] = []
    guard = Guard("a hook", lambda _: seen.append(guard.error))
    assert guard.error is None
    with guard:
        raise KeyError("x")
    assert repr(seen) == "[KeyError('x')]"


def test_nothing_is_said_where_nothing_was_raised():
    before = counters.snapshot()
    with Guard("a hook", lambda reason: pytest.fail(reason)):
        pass
    assert counters.snapshot() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=["interrupt", "exit"])
def test_what_ends_a_process_is_not_kept(error: BaseException):
    with pytest.raises(type(error)), Guard("a hook", lambda reason: pytest.fail(reason)):
        raise error


def test_an_engine_that_cannot_take_its_offers_down_does_not_go_on():
    def failed(reason: str) -> None:
        raise OSError("the generations cannot be written")

    with pytest.raises(OSError, match="cannot be written"), Guard("a hook", failed):
        raise KeyError("x")


def test_the_log_has_the_first_tracebacks_alone(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, "vllm.kvmarket"):
        for number in range(8):
            with Guard("a hook", nothing_to_close):
                raise KeyError(number)
    found = [record for record in caplog.records if record.name == "vllm.kvmarket"]
    assert len(found) == 5
    assert [str(record.exc_info[1]) for record in found if record.exc_info] == ["0", "1", "2", "3", "4"]
    assert found[0].getMessage() == "kvmarket failed in a hook and goes on without it"
