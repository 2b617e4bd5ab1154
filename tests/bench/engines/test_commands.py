"""What engine processes do for the benchmarks, against an engine that gives each request a token a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench.engines import commands


class FakeCore:
    """Gives every request one token a step, and notes how many run."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.prompts: list[list[int]] = []
        self.most = 0

    def add_request(self, name: str, prompt: dict[str, list[int]], sampling: Any) -> None:
        self.left[name] = sampling.max_tokens
        self.prompts.append(prompt["prompt_token_ids"])

    def step(self) -> list[Any]:
        self.most = max(self.most, len(self.left))
        outputs = []
        for name in list(self.left):
            self.left[name] -= 1
            finished = self.left[name] == 0
            cached = 7 if len(outputs) == 0 else None
            outputs.append(
                SimpleNamespace(
                    request_id=name,
                    outputs=[SimpleNamespace(token_ids=[1])],
                    num_cached_tokens=cached,
                    finished=finished,
                )
            )
            if finished:
                del self.left[name]
        return outputs


class FakeClock:
    """A millisecond passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def replayed(requests: list[dict[str, Any]], **more: Any) -> tuple[list[dict[str, Any]], FakeCore]:
    core = FakeCore()
    engine: Any = SimpleNamespace(llm=SimpleNamespace(llm_engine=core))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "time", FakeClock())
        commands.prepare(engine, requests)
        return commands.replay(engine, 100.0, **more)["requests"], core


def test_prompts_are_the_same_wherever_they_are_made_and_share_what_their_parts_share():
    one, two = commands.prompt_of([[5, 40], [6, 10]]), commands.prompt_of([[5, 40], [7, 10]])
    assert one == commands.prompt_of([[5, 40], [6, 10]]) and len(one) == 50
    assert one[:40] == two[:40] and one[40:] != two[40:]


def test_requests_run_when_they_come():
    late, early = {"at": 0.2, "parts": [[1, 4]], "tokens": 3}, {"at": 0.0, "parts": [[2, 5]], "tokens": 2}
    done, core = replayed([late, early], times=True)
    assert [one["count"] for one in done] == [2, 3] and [len(prompt) for prompt in core.prompts] == [5, 4]
    assert [len(one["times"]) for one in done] == [2, 3] and core.most == 1
    assert done[0]["at"] == 0.0 <= done[0]["first"] <= done[0]["last"] < 0.2 == done[1]["at"] <= done[1]["first"]
    assert [one["cached"] for one in done] == [7, 7]


def test_no_more_run_at_a_time_than_fit_the_window():
    requests = [{"at": 0.0, "parts": [[at, 4]], "tokens": 2} for at in range(5)]
    done, core = replayed(requests, window=2)
    assert core.most == 2 and "times" not in done[0]
    assert done[4]["at"] >= done[1]["last"], "came in before there was room"
    assert replayed(requests)[1].most == 5
