"""The worker side from its pages to its end: what it shares, what it says of that, and what it lets go of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket import counters
from tests.vllm_hook.worker.fakes import HIT, FakeData, load, worker
from vllm_hook.engine import compat, facts
from vllm_hook.identity.naming import Weights
from vllm_hook.metadata import StepMetadata
from vllm_hook.worker import changes
from vllm_hook.worker import side as worker_module
from vllm_hook.worker.side import GONE, WorkerSide


class Side(WorkerSide):
    """A worker side whose pages and data half are fakes."""

    def __init__(self, refusal: str = "", data_parallel: int = 1) -> None:
        parallel = SimpleNamespace(data_parallel_size=data_parallel)
        config = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(model="a model"))
        super().__init__(config, None, refusal, programs=7)
        self._weights.loaded = Weights("its weights")
        self.data: Any = FakeData()

    def make_data_half(self, pages: Any) -> Any:
        self.data.memory = "its memory"
        self.data.mover = SimpleNamespace(describe=lambda: "by hand")
        return self.data


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(compat, "prepare_cpu_worker", lambda: names.append("prepare"))
    monkeypatch.setattr(changes, "watch", lambda config, listener: names.append("watch"))
    monkeypatch.setattr(facts, "of_worker", lambda config, pages: (("pages", "p"),))
    monkeypatch.setattr(facts, "stage_of", lambda: 3)
    monkeypatch.setattr(
        worker_module, "Pages", lambda caches, config: SimpleNamespace(cache=SimpleNamespace(layout="its layout"))
    )
    return names


def test_pages_are_shared_and_told(called: list[str]):
    side = Side()
    assert side.handshake().refusal == "the worker has no KV cache"
    side.register({"layer": torch.zeros(1)})
    assert called == ["prepare", "watch"] and side._in_lockstep is False
    said = side.handshake()
    assert (said.memory, said.layout, said.facts) == ("its memory", "its layout", (("pages", "p"),))
    assert (said.stage, said.ways, said.refusal, said.worker()) == (3, "by hand", "", None)
    assert said.loaded == Weights("its weights")
    side.alone = True
    assert side.handshake().worker() is side


def test_who_is_refused_shares_nothing(called: list[str]):
    side = Side("not served")
    side.register({"layer": torch.zeros(1)})
    assert called == ["prepare"], "a worker on a CPU needs that all the same"
    assert side.handshake().refusal == "not served" and side._data is None
    side.refuse("another reason")
    assert side.handshake().refusal == "not served", "the first one stays"


def test_weights_that_nothing_names_share_nothing(called: list[str]):
    side = Side()
    side.register({"layer": torch.zeros(1)})
    side._weights.loaded = Weights("", "nobody saw them")
    said = side.handshake()
    assert said.refusal == "it is not known which weights a model has: nobody saw them" and said.memory is None
    assert side._data is None, "and no import writes into its pages"


def test_engines_in_lockstep_are_known(called: list[str]):
    side = Side(data_parallel=2)
    side.register({"layer": torch.zeros(1)})
    assert side._in_lockstep is True


def test_what_is_unreachable_is_said_once():
    side, _ = worker()
    side._unreachable += ["a", "b"]
    assert side.done(StepMetadata(1)).unreachable == ("a", "b")
    assert side.done(StepMetadata(2)).unreachable == ()


def test_lost_blocks_are_counted_and_no_others():
    side, data = worker()
    key = f"vllm_blocks_lost{{{GONE}}}"
    before = counters.snapshot().get(key, 0)
    side.start(StepMetadata(1, (load("a", HIT, 4, 5, 6), load("b", HIT, 7, 8, 9))))
    for moved, valid in zip(data.moved, ([True] * 3, [True, False, True]), strict=True):
        moved.valid = valid
    side.poll()
    assert counters.snapshot()[key] == before + 2


def test_it_lets_go_once():
    side, data = worker()
    closed: list[int] = []
    data.close = lambda: closed.append(1)  # type: ignore[attr-defined]
    side.close()
    side.close()
    assert closed == [1]
    failed = failures()
    side.start_now(load("a", HIT, 4))
    side.start(StepMetadata(1, (load("a", HIT, 4),), ("gone",)))
    assert side.take_finished() == {"a"} and side.take_bad() == {4}, "a load ends all the same"
    assert failures() == failed


def failures() -> int:
    return sum(n for key, n in counters.snapshot().items() if key.startswith("vllm_hook_failed"))


def test_a_load_without_a_hit_is_not_started_ahead():
    side, data = worker()
    side.start_now(load("a", None, 4))
    assert data.moved == []


def test_its_data_half_is_that_of_its_rank(monkeypatch: pytest.MonkeyPatch):
    made: dict[str, Any] = {}
    monkeypatch.setattr(
        worker_module, "DataHalf", lambda cache, rank, **more: made.update(more, cache=cache, rank=rank)
    )
    monkeypatch.setattr(facts, "rank_of", lambda: 5)
    side = WorkerSide(None, None, programs=7)
    side.make_data_half(SimpleNamespace(cache="its cache"))  # type: ignore[arg-type]
    made.pop("on_unreachable")("a pool")
    assert made == {"cache": "its cache", "rank": 5, "programs": 7, "look_seconds": 0.02}
    assert side.take_unreachable() == ("a pool",) and side._rank == 5
