"""Short runs of the chaos, and proof that it notices what must not be. Long runs: ``python -m tests.chaos``."""

from __future__ import annotations

import re

import pytest

from tests.chaos import driver
from tests.chaos.driver import Driver
from tests.chaos.plan import Plan
from tests.chaos.result import Result


def chaos(**options) -> Result:
    plan = Plan(**options)
    result = Driver(plan).run()
    print(plan)
    print(result.table())
    return result


def check(result: Result) -> None:
    assert not result.failures, "\n\n".join([str(result.plan), *result.failures[:3]])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_ever_wrong(seed):
    result = chaos(seed=seed, seconds=10, kills=20, stops=8, service_kills=2)
    check(result)
    assert (result.kills, result.service_kills) == (20, 2)
    assert result.done["verified"] > 200
    assert result.done["hits"] > 50


@pytest.mark.slow
def test_nothing_is_ever_wrong_in_a_crowd_that_loses_messages():
    result = chaos(
        seed=4, seconds=10, engines=4, kills=10, stops=4, service_kills=2, service_stops=2,
        loss=0.02, branches=2000, tenants=200,
    )  # fmt: skip
    check(result)
    assert result.service_stops
    assert result.done["verified"] > 100


@pytest.mark.slow
def test_nothing_is_ever_wrong_with_lenders():
    result = chaos(seed=6, seconds=10, engines=4, lenders=2, kills=15, stops=6, service_kills=2)
    check(result)
    assert result.counters["blocks_fetched_from_lenders"] > 200
    assert all(result.counters[name] > 10 for name in ("blocks_lent", "blocks_given_up", "blocks_taken_back"))


@pytest.mark.slow
@pytest.mark.gpu
def test_nothing_is_ever_wrong_with_lenders_over_cuda_ipc():
    result = chaos(seed=7, seconds=30, engines=3, lenders=1, kills=6, stops=2, service_kills=1, device="cuda")
    check(result)
    assert result.counters["blocks_fetched_from_lenders"] > 200


@pytest.mark.slow
@pytest.mark.gpu
def test_nothing_is_ever_wrong_over_cuda_ipc():
    result = chaos(seed=3, seconds=30, engines=4, kills=10, stops=4, service_kills=1, device="cuda")
    check(result)
    assert result.done["verified"] > 1000


@pytest.mark.parametrize("fault", ["OverwritesWithoutRetiring", "PublishesWrongBytes", "WritesBeforeItRetires"])
def test_wrong_bytes_are_noticed(fault):
    result = chaos(seconds=3, engines=3, keep=1, kills=2, stops=0, service_kills=0, fault=fault)
    assert result.done["wrong"]
    assert "WRONG BYTES in step" in "".join(result.failures)


def test_a_hang_is_noticed():
    result = chaos(seconds=5, engines=2, keep=1, kills=0, stops=2, service_kills=0, hang_seconds=1.5, fault="Hangs")
    assert len(result.hangs) == 1
    assert re.search(r"time\.sleep|in step", result.hangs[0]), "it says where"


def test_an_exception_is_noticed():
    result = chaos(seconds=3, engines=2, keep=1, kills=0, stops=0, service_kills=0, fault="Raises")
    assert len(result.exceptions) == 1
    assert "AssertionError: an injected fault" in result.exceptions[0]


def test_a_leak_is_noticed():
    """In three seconds it could not be seen, however fast the machine is: the run goes on until it can."""
    result = chaos(seconds=3, engines=2, keep=1, kills=0, stops=0, service_kills=0, fault="Leaks")
    assert any("descriptors grew" in leak for leak in result.leaks)


def test_a_run_in_which_no_leak_could_be_seen_is_not_good(monkeypatch):
    monkeypatch.setattr(driver, "MEASURING_SECONDS", 0.0)
    result = chaos(seconds=0.5, engines=2, keep=1, kills=0, stops=0, service_kills=0)
    assert "engine0 was sampled too rarely for a leak to show" in result.failures


def test_the_same_seed_is_the_same_plan():
    assert Plan(seed=5).events() == Plan(seed=5).events() != Plan(seed=6).events()
