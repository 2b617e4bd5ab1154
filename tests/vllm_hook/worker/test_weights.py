"""Weights that change: named by what they hold, and heard of however they are changed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.vllm_hook.worker.fakes import worker as worker_of_a_side
from vllm_hook.identity.naming import Weights
from vllm_hook.metadata import StepDone
from vllm_hook.worker import changes
from vllm_hook.worker import weights as weights_module
from vllm_hook.worker.weights import CacheWeights, RankWeights, have_names

NEW, NEWER = ((0, "new"),), ((0, "newer"),)


class Model(torch.nn.Module):
    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))

    def load_weights(self, by: float) -> str:
        for parameter in self.parameters():
            parameter.data.add_(by)
        return "loaded"


class Worker:
    """vLLM's worker, as far as weights go."""

    def __init__(self, model: Model | None = None) -> None:
        self.model = model or Model(weight=torch.ones(3))

    def get_model(self) -> Model:
        return self.model

    def compile_or_warm_up_model(self) -> None:
        """Nothing to compile."""

    def reload_weights(self, by: float) -> None:
        self.model.weight.data.add_(by)

    def execute_model(self) -> str:
        return "output"


def test_the_name_of_the_start_is_taken_once_when_the_worker_is_ready(monkeypatch: pytest.MonkeyPatch):
    worker, weights, named = Worker(), RankWeights(), []
    monkeypatch.setattr(weights_module, "name_as_loaded", lambda *asked: named.append(asked) or Weights("loaded"))
    assert not weights.loaded.name, "nobody has looked"
    weights.ready(worker)
    worker.get_model().load_weights(1)
    weights.ready(worker)
    assert weights.loaded == Weights("loaded") and named == [(worker.model, worker)]
    assert weights.name(), "what changes later has a name of its own"


def test_a_model_that_cannot_be_named_keeps_the_engine_going():
    weights = RankWeights()
    weights.ready(NoWorker())
    assert not weights.loaded.name


def test_a_worker_whose_weights_nobody_knows_takes_no_part():
    side, _ = worker_of_a_side()
    side._vllm_config = SimpleNamespace(model_config=SimpleNamespace(model="org/model"))
    side._weights.loaded = Weights("", "nobody saw what was read; do this")
    refused = side.handshake()
    assert "org/model" in refused.refusal and "do this" in refused.refusal and refused.memory is None


class NoWorker:
    def get_model(self) -> Model:
        raise RuntimeError("out of memory, say")


class Extension:
    def set_from_trainer(self, by: float) -> float:
        self.model.weight.data.add_(by)  # type: ignore[attr-defined]
        return by

    @staticmethod
    def hello() -> str:
        return "hello"


def test_weights_that_are_set_back_have_their_old_name():
    worker, weights = Worker(), RankWeights()
    assert weights.name() == ""
    weights.changing(worker)
    assert weights.name() == "", "a look at the weights changes nothing"
    weights.changing(worker)
    worker.reload_weights(1)
    changed = weights.name()
    assert changed and have_names(((0, changed),))
    worker.reload_weights(-1)
    assert weights.name() == changed, "nobody has said that they change"
    weights.changing(worker)
    assert weights.name() == ""
    other, same = RankWeights(), Worker()
    other.changing(same)
    same.reload_weights(1)
    assert other.name() == changed, "equal weights have equal names in every process"


def test_hidden_or_unreadable_weights_have_a_name_of_their_own():
    names = set()
    for worker in (Worker(Model(weight=torch.empty(0))), NoWorker()):
        weights = RankWeights()
        for _ in range(2):
            weights.changing(worker)
            names.add(weights.name())
            assert weights.name() in names
    assert len(names) == 4 and not any(have_names(((0, name),)) for name in names)


@pytest.fixture
def heard() -> tuple[type[Worker], RankWeights]:
    """A worker class of the test's own, with an extension, and the weights that hear of it."""

    class Extended(Worker, Extension):
        pass

    module = sys.modules[__name__]
    module.Extended = Extended  # type: ignore[attr-defined]
    weights = RankWeights()
    config = SimpleNamespace(worker_cls=f"{__name__}.Extended", worker_extension_cls=f"{__name__}.Extension")
    changes.watch(config, weights)
    changes.watch(config, weights)
    return Extended, weights


@pytest.mark.parametrize(
    "change",
    [
        lambda worker: worker.reload_weights(1),
        lambda worker: worker.set_from_trainer(1),
        lambda worker: worker.get_model().load_weights(1),
    ],
    ids=["by the worker", "by the operator's extension", "into the model"],
)
def test_changes_are_heard_of(heard: tuple[type[Any], RankWeights], change: Callable[[Any], object]):
    worker_class, weights = heard
    worker = worker_class()
    worker.compile_or_warm_up_model()
    assert worker.execute_model() == "output" and worker.hello() == "hello"
    assert weights.name() == ""
    change(worker)
    assert weights.name()
    assert worker.set_from_trainer(2) == 2 and worker.get_model().load_weights(0) == "loaded"


def test_a_worker_outlives_its_connector(heard: tuple[type[Any], RankWeights]):
    worker_class, weights = heard
    worker = worker_class()
    worker.compile_or_warm_up_model()
    del heard, weights
    worker.reload_weights(1)
    assert worker.get_model().load_weights(1) == "loaded"


def test_a_cache_is_of_one_kind_of_weights_only_since_it_was_emptied():
    cached = CacheWeights()
    assert not cached.only(()), "no step has shown it"
    cached.computed(1, ())
    cached.computed(2, NEW)
    assert not cached.only(NEW) and not cached.only(())
    cached.emptied(4)
    cached.computed(3, ())
    assert not cached.only(NEW)
    cached.computed(4, NEW)
    assert cached.only(NEW)
    cached.computed(5, NEWER)
    assert not cached.only(NEW) and not cached.only(NEWER)


def test_ranks_say_what_they_computed_with_in_any_order():
    one, two, three = StepDone(4, weights=NEW), StepDone(4, weights=((1, "x"),)), StepDone(4)
    assert (
        one.aggregate(two)
        == two.aggregate(one)
        == one.aggregate(three).aggregate(two).__class__(4, 2, (), (*NEW, (1, "x")))
    )
