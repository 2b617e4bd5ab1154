"""What the benchmarks of the hook make of the times that engines report."""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import pytest

from bench.engines import load
from bench.engines.spans import PHASES, REST, Spans
from bench.hook.outputs import tally
from bench.hook.serving import ASKS, TURNS, chat, retrieval, summary
from bench.hook.throughput import Fetches
from bench.hook.ttft import OWN, PEER, Bench
from bench.hook.ttft_trace import lines


class FakeEngine:
    """An engine process that answers a replay: each request's tokens come 1, 2, 3, ... seconds after it."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.plan = log, []

    def tell(self, do: str, **arguments: Any) -> None:
        self.log.append(do)
        self.plan = arguments.get("requests", self.plan)

    def answer(self, seconds: float) -> dict[str, Any]:
        return {"requests": [answered(one["at"], range(1, one["tokens"] + 1)) for one in self.plan]}


def answered(at: float, after: Any, cached: int = 0) -> dict[str, Any]:
    times = [at + seconds for seconds in after]
    return {"at": at, "first": times[0], "last": times[-1], "count": len(times), "cached": cached, "times": times}


def test_engines_prepare_before_any_of_them_starts():
    log: list[str] = []
    engines = [FakeEngine(log), FakeEngine(log)]
    done = load.replay(engines, [[{"at": 2.0, "tokens": 3}], [{"at": 0.5, "tokens": 1}]])
    assert log == ["prepare", "prepare", "replay", "replay"]
    assert load.span(one for each in done for one in each) == 4.5
    assert load.first_tokens(done[0]) == [1000.0] and load.per_token(done[0]) == [1000.0]
    assert load.per_token(done[1]) == [], "one token has no time between tokens"


def test_gaps_that_touch_a_window():
    requests = [answered(0.0, [1.0, 1.5, 3.5]), answered(0.0, [7.0, 7.25])]
    assert load.gaps(requests) == [500.0, 2000.0, 250.0]
    assert load.gaps(requests, [(2.0, 2.5), (3.0, 3.1)]) == [2000.0]
    assert load.gaps(requests, [(0.0, 0.9), (1.5, 1.6), (7.1, 9.0)]) == [2000.0, 250.0]


def test_running_requests_that_end_too_soon_are_told_of():
    options = argparse.Namespace(settle=2.0, every=1.0, prefixes=2, prefix=64)
    fetches = Fetches(FakeEngine([]), FakeEngine([]), 0, options)
    fetches.note("no fetch", [answered(0.0, [1.0, 2.5])], [])
    with pytest.raises(SystemExit, match="no fetch: no token came while fetches ran; give a longer --running-output"):
        fetches.note("no fetch", [answered(0.0, [1.0, 1.5])], [])


def test_a_ratio_says_how_much_of_the_ceiling_is_reached():
    time, rate = load.row("t", [4.0, 4.0], "ms", 2.0), load.row("r", [4.0, 4.0], "tokens/s", 8.0)
    assert (time["ratio"], rate["ratio"], load.row("x", [1.0], "ms")["ratio"]) == (0.5, 0.5, None)
    assert load.row("p", range(101), "ms")["p99"] == 99.0


OPTIONS = argparse.Namespace(
    system=100, turns=40, say=10, answer=5, documents=8, document=50, question=4, short_answer=2
)


def test_every_turn_follows_what_was_said_before():
    plans = chat(OPTIONS, 2, rate=10.0)
    requests = sorted((one for plan in plans for one in plan), key=lambda one: one["at"])
    assert [len(plan) for plan in plans] == [20, 20]
    assert len({tuple(one["parts"][0]) for one in requests}) == 1, "one system prompt"
    by_user: dict[int, list[dict[str, Any]]] = {}
    for one in requests:
        by_user.setdefault(one["parts"][1][0], []).append(one)
    assert {len(turns) for turns in by_user.values()} == {TURNS} and len(by_user) == 40 // TURNS
    for turns in by_user.values():
        for before, after in pairwise(turns):
            assert after["parts"][: len(before["parts"])] == before["parts"] and before["at"] < after["at"]
            assert [tokens for _, tokens in after["parts"][len(before["parts"]) :]] == [5, 10]
    assert requests[-1]["at"] == pytest.approx(4.0, rel=0.5), "40 requests at 10 a second"


def test_every_document_is_asked_about_and_not_at_once():
    plans = retrieval(OPTIONS, 2)
    asked = [one["parts"][0][0] for plan in plans for one in plan]
    assert sorted(asked) == sorted([*set(asked)] * ASKS)
    assert len(set(asked)) == 8 and all(plans)
    assert len({one["parts"][1][0] for plan in plans for one in plan}) == 8 * ASKS, "each question is new"
    (single,) = retrieval(OPTIONS, 1)
    assert all(before["parts"][0] != after["parts"][0] for before, after in pairwise(single))


def test_what_a_run_is_summed_up_to():
    plans = [[{"at": 0.0, "parts": [[1, 60], [2, 40]], "tokens": 2}], [{"at": 1.0, "parts": [[3, 100]], "tokens": 1}]]
    done = [[answered(0.0, [2.0, 3.0], cached=50)], [answered(1.0, [3.0])]]
    found = summary("s", plans, done, mode="hook on")
    assert (found["p50"], found["requests_per_s"], found["tokens_per_s"]) == (2500.0, 0.5, 50.8)
    assert (found["computed_share"], found["tpot_p50"], found["mode"]) == (0.75, 1000.0, "hook on")


def test_answers_are_compared_with_both_runs_of_the_plain_engine():
    assert tally([[1], [2], [3]], cold=[[1], [9], [9]], cached=[[1], [2], [8]]) == {
        "answers": 3,
        "same": 2,
        "same_as_cold": 1,
        "same_as_cached": 2,
        "spread": 2,
    }


def test_the_goal_is_own_cache_and_bytes_and_a_little():
    bench = Bench({}, 16, 1, 1)
    bench.samples |= {(OWN, 1000): [7.0], (PEER, 1000): [10.0]}
    own, peer = bench.rows(rate=0.5, token_bytes=1000)
    assert (own["ceiling"], own["bytes"], "goal" in own) == (7.0, 1_000_000, False)
    assert (peer["ceiling"], peer["ratio"], peer["goal"]) == (9.0, 0.9, 11.3)
    bench.compare(1000, {"a": 1, "b": 1})
    assert bench.wrong == []
    bench.compare(1000, {"a": 1, "b": 2})
    assert len(bench.wrong) == 1


def test_spans_are_told_apart_from_the_ones_within():
    now = [0.0]

    class Thing:
        def outer(self) -> None:
            now[0] += 1
            self.inner()
            now[0] += 2

        def inner(self) -> None:
            now[0] += 4

    spans, thing = Spans(lambda: now[0]), Thing()
    spans.wrap(thing, "outer", "outer")
    spans.wrap(thing, "inner", "inner", lambda *_: spans.next_phase(1))
    spans.start()
    now[0] += 8
    thing.outer()
    found = spans.stop()
    assert found[PHASES[0]] == {
        REST: {"ms": 8000.0, "calls": 0},
        "outer": {"ms": 1000.0, "calls": 1},
        "inner": {"ms": 4000.0, "calls": 1},
    }
    assert found[PHASES[1]]["outer"]["ms"] == 2000.0 and found[PHASES[2]] == {}


def test_what_a_peer_costs_more_comes_first():
    table = lines(
        {
            PEER: {(PHASES[0], "a"): 1.0, (PHASES[1], "b"): 5.0, (PHASES[2], "a"): 1.0},
            OWN: {(PHASES[0], "a"): 1.5, (PHASES[0], "c"): 0.5},
        }
    )
    assert [line.split()[0] for line in table] == ["ms", "b", "a", "c", "all"]
    assert table[-1].split()[1:] == ["1.000", "5.000", "1.000", "2.000", "5.000"]
