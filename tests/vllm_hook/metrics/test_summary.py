"""The line of an engine's start says what is on, and why the rest is not."""

from __future__ import annotations

import pytest

from tests.vllm_hook.scheduler.fakes import FakeControl, FakePool, joined
from vllm_hook.metadata import RankMemory
from vllm_hook.scheduler.side import SchedulerSide


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({}, ["offers on", "imports on, by shm"]),
        ({"offers": False}, ["offers off (kv_role is kv_consumer)", "imports on, by shm"]),
        ({"imports": False}, ["offers on", "imports off (kv_role is kv_producer)"]),
    ],
)
def test_roles_and_ways(roles: dict[str, bool], said: list[str]):
    side = SchedulerSide(4, 1, **roles)
    _, control = joined()
    side.join({0: RankMemory(None, None, ways="shm")}, lambda _: control)  # type: ignore[arg-type, return-value]
    parts = side.describe().split("; ")
    assert parts[0] == "market /m, space s", "whoever has another line there never meets this engine"
    assert parts[1:3] == said and parts[4] == "1 rank(s), 4 tokens a block"


def test_how_reuse_is_seen_and_who_is_there():
    side, control = joined(FakePool())
    assert side.describe().endswith(
        "reuse of pages tracked and watched; 1 rank(s), 4 tokens a block; no peer engine yet"
    )
    control.found_peers = 3
    assert side.describe().endswith("; 3 peer engine(s) found")
    unwatched, _ = joined()
    assert "not watched (this vLLM's block pool does not tell of it" in unwatched.describe()


def test_whoever_has_just_joined_is_described_before_the_scheduler_looks():
    side, control = SchedulerSide(4, 1), FakeControl()
    assert side.describe().endswith("; no peer engine yet")
    control.found_peers = 2
    assert side.describe(control).endswith("; 2 peer engine(s) found")  # type: ignore[arg-type]
