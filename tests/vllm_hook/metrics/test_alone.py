"""What an engine without a peer says of whoever is near: the fact to change, once, and never many lines."""

from __future__ import annotations

import logging

import pytest

from kvmarket import counters
from kvmarket.errors import AddressError
from kvmarket.registry.client.others import Apart, Others
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.differences import Difference
from kvmarket.registry.protocol.status import Label
from tests.vllm_hook.scheduler.fakes import FakeHome
from vllm_hook.metrics.alone import LOOKS, MOST_WARNINGS, Alone

WEIGHTS = Difference("weights", "[(0, '0123…')]", "[(0, '89ab…')]")
DTYPE = Difference("configuration.model_config.dtype", "torch.float16", "torch.bfloat16")
MANY = [Difference(f"fact{number}", "1", "2") for number in range(9)]


def apart(space: str, differing: list[Difference] | None, model: str = "m", pid: int = 12, port: int = 0) -> Apart:
    return Apart(space, pid, Label(model, port), differing)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):
    """What is said of these, and how loudly, by one engine."""
    alone, home = Alone(), FakeHome()

    def say(*spaces: Apart, count: int = 0, markets: tuple[str, ...] = (), folder: str = "") -> list[tuple[str, str]]:
        home.near = Others(list(spaces), count or len(spaces), [Address(path) for path in markets], folder)  # type: ignore[arg-type]
        caplog.clear()
        with caplog.at_level(logging.INFO, "vllm.kvmarket"):
            alone.say(home)  # type: ignore[arg-type]
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    yield say


def test_the_fact_that_differs_is_said_once(said):
    assert said() == []
    assert said(apart("s1", [WEIGHTS, DTYPE], port=8001)) == [
        (
            "WARNING",
            "kvmarket shares with nobody yet: pid 12 (m, port 8001) is in the same market but differs in weights "
            "([(0, '0123…')] here, [(0, '89ab…')] there), configuration.model_config.dtype (torch.float16 here, "
            "torch.bfloat16 there): see `kvmarket top --why --address /m`",
        )
    ]
    assert said(apart("s1", [WEIGHTS, DTYPE], port=8001)) == []
    ((_, again),) = said(apart("s1", [WEIGHTS, DTYPE]), apart("s2", MANY, pid=13))
    assert "pid 13 (m)" in again and "pid 12" not in again
    assert again.count(" here,") == 3 and " and 6 more fact(s):" in again


def test_a_copy_of_other_weights_is_no_other_model_by_whatever_path(said):
    ((level, line),) = said(
        apart("s1", [WEIGHTS], "/copies/other"), apart("s2", MANY, "/copies/m"), apart("s3", MANY, "x")
    )
    assert (
        level == "WARNING"
        and "pid 12 (/copies/other) is" in line
        and "pid 12 (/copies/m) is" in line
        and "(x" not in line
    )


def test_other_models_are_normal_and_named_once(said):
    others = [apart(str(number), MANY, f"other{number}", number) for number in range(4)]
    assert said(*others, count=40) == [
        (
            "INFO",
            "kvmarket shares with nobody yet: only engines of other models are in this market: pid 0 (other0), "
            "pid 1 (other1), pid 2 (other2) and engines of 37 more",
        )
    ]
    assert said(*others, apart("new", MANY, "another")) == []
    ((level, _),) = said(*others, apart("like", [WEIGHTS]))
    assert level == "WARNING"


def test_another_market_is_said_once(said):
    ((level, line),) = said(markets=("/typo",))
    assert level == "INFO" and "in the market /m, and another market lives at /typo; " in line
    assert line.endswith("never share: give all of them one address")
    assert said(markets=("/typo",)) == []


def test_a_market_elsewhere_does_not_hide_one_nearby_or_that_of_another_version(said):
    assert "lives at /k/a, another market lives at /k/b; engines" in said(markets=("/k/a", "/k/b"))[0][1]
    ((_, version), (_, near)) = said(markets=("/typo", "/m.8", "/k/c"))
    assert version.endswith(
        "in the market /m, and engines that speak kvmarket/8 meet at /m.8; run one version of kvmarket"
    )
    assert "another market lives at /typo; " in near and "/k/c" not in near


def test_facts_that_are_not_told_are_not_made_up(said):
    ((_, line),) = said(apart("s1", None), apart("s2", None, "x"))
    assert line.count("in facts that are not told here") == 1


def test_never_many_lines_and_those_that_matter_most_are_not_crowded_out(said):
    lines = [line for number in range(50) for line in said(apart(str(number), MANY, "x"), markets=(f"/k/{number}",))]
    assert [level for level, _ in lines] == ["INFO", "INFO"]
    lines = [line for number in range(50) for line in said(apart(f"w{number}", [WEIGHTS]))]
    assert [level for level, _ in lines] == ["WARNING"] * MOST_WARNINGS


def test_many_at_once_are_one_line(said):
    ((_, line),) = said(*(apart(str(number), [WEIGHTS], pid=number) for number in range(30)))
    assert "pid 2 (m)" in line and "pid 3 (m)" not in line and "; and 27 more: see" in line


def test_a_service_that_does_not_answer_is_counted(said, monkeypatch: pytest.MonkeyPatch):
    home = FakeHome()
    home.near = AddressError("a test")
    Alone().say(home)  # type: ignore[arg-type]
    assert counters.snapshot()["lookout_failed{AddressError}"] == 1


def test_which_folder_others_must_have_is_said_where_nobody_comes(said):
    why = "the market's folder /k is in this container's own file system; mount one"
    assert said(folder=why) == said(folder=why) == [], "they may be starting"
    assert said(folder=why) == [("INFO", f"kvmarket shares with nobody yet: {why}")]
    assert said(folder=why) == []


def test_no_folder_is_named_where_somebody_is_near(said):
    lines = [said(apart("s1", [WEIGHTS]), markets=("/k",), folder="a folder") for _ in range(LOOKS + 1)]
    assert [len(each) for each in lines] == [2, 0, 0, 0] and "a folder" not in str(lines)
