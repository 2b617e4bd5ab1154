"""The name of what a rank has loaded: a checksum where weights show, else what was read, else a reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_hook.identity import naming
from vllm_hook.identity.files import ChangedError, WeightFile, digest_of
from vllm_hook.identity.loads import Load
from vllm_hook.identity.naming import UNSEEN, Weights, name_as_loaded


def worker(**parallel: Any) -> Any:
    """vLLM's worker, as far as its configuration goes."""
    parallel = {"data_parallel_size": 1, **parallel}
    model = SimpleNamespace(model="org/model", seed=5)
    return SimpleNamespace(vllm_config=SimpleNamespace(model_config=model, parallel_config=SimpleNamespace(**parallel)))


def shown(value: float = 1.0) -> torch.nn.Module:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, value)
    torch.nn.init.constant_(model.bias, 0.0)
    return model


def hidden() -> torch.nn.Module:
    """As vLLM's CPU build leaves a linear layer."""
    model = shown()
    model.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    return model


def read(monkeypatch: pytest.MonkeyPatch, load: Load) -> None:
    monkeypatch.setattr(naming, "load_of", lambda model: load)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def loaded(*paths: Path) -> Load:
    load = Load()
    load.reads([str(path) for path in paths])
    load.read()
    return load


def test_weights_that_show_are_named_by_what_they_are(monkeypatch: pytest.MonkeyPatch, weights: Path):
    one, same, other = (name_as_loaded(shown(value), worker()) for value in (1.0, 1.0, 2.0))
    assert one == same and one.name != other.name and one.name and not one.reason
    read(monkeypatch, loaded(weights))
    assert name_as_loaded(shown(), worker()) == one, "whatever was read"


def test_hidden_weights_are_named_by_what_was_read(monkeypatch: pytest.MonkeyPatch, weights: Path):
    read(monkeypatch, loaded(weights))
    found = name_as_loaded(hidden(), worker())
    assert found == Weights(f"files {digest_of([WeightFile(weights)])}")


def test_hidden_random_weights_are_named_by_their_seed(monkeypatch: pytest.MonkeyPatch):
    read(monkeypatch, Load(random=True))
    assert name_as_loaded(hidden(), worker()) == Weights("dummy, seed 5")


def test_hidden_weights_of_which_nothing_is_known_have_none_but_a_reason(
    monkeypatch: pytest.MonkeyPatch, weights: Path
):
    assert name_as_loaded(hidden(), worker()) == Weights("", UNSEEN)
    read(monkeypatch, loaded())
    assert name_as_loaded(hidden(), worker()) == Weights("", UNSEEN), "its loader read no file"
    monkeypatch.setattr(WeightFile, "check", lambda self: (_ for _ in ()).throw(ChangedError("changed; start again")))
    read(monkeypatch, loaded(weights))
    assert name_as_loaded(hidden(), worker()) == Weights("", "changed; start again")


def test_code_of_the_operators_own_goes_with_the_weights():
    class Mine(torch.nn.Linear):
        pass

    found = name_as_loaded(Mine(1, 1), worker())
    assert found.code and found.name and not name_as_loaded(shown(), worker()).code


def test_experts_that_are_spread_over_ranks_are_named_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(naming, "name_of_group", lambda own, config: f"all of {own}")
    assert name_as_loaded(shown(), worker()).name.startswith("all of ")


def test_a_file_that_changes_while_it_is_read_names_nothing(monkeypatch: pytest.MonkeyPatch, weights: Path):
    """For whoever has no engine that loaded them."""

    def changes(files: Any) -> str:
        raise ChangedError("model.safetensors was changed")

    model = SimpleNamespace(model=str(weights), seed=0)
    config = SimpleNamespace(model_config=model, load_config=SimpleNamespace(load_format="auto"))
    monkeypatch.setattr(naming.compat, "weight_files", lambda path, load_format: [str(weights)])
    assert naming.weights_of(config).name.startswith("files ")
    monkeypatch.setattr(naming, "digest_of", changes)
    assert naming.weights_of(config) == Weights("", "model.safetensors was changed")
