"""Code of the operator's own is part of what an engine is; where it lies is not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket.errors import FingerprintError
from vllm_hook.identity.code import code_of

MODEL = "import torch\nfrom . import helper\nclass Model(torch.nn.Module):\n    def forward(self): return {}\n"
PLAIN = MODEL.replace("from . import helper\n", "")


@pytest.fixture
def imported(tmp_path: Path) -> Iterator[Any]:
    """Writes modules, imports the first of them anew, and forgets them in the end."""
    before = set(sys.modules)
    folders: list[str] = []

    def forget() -> None:
        for name in set(sys.modules) - before:
            del sys.modules[name]

    def do(where: str, **sources: str) -> Any:
        forget()
        folder = tmp_path / where
        for name, source in sources.items():
            path = folder / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        sys.path.insert(0, str(folder))
        folders.append(str(folder))
        importlib.invalidate_caches()
        return importlib.import_module(next(iter(sources)).replace("__", "."))

    yield do
    forget()
    sys.path[:] = [path for path in sys.path if path not in folders]


def test_vllms_own_code_goes_with_its_version():
    assert code_of(torch.nn.Sequential(torch.nn.Linear(1, 1))) == ""


def test_the_source_of_a_model_counts_wherever_it_lies(imported: Any):
    one = code_of(torch.nn.Sequential(imported("here", modeling_x=PLAIN.format(1)).Model()))
    again = code_of(torch.nn.Sequential(imported("there", modeling_x=PLAIN.format(1)).Model()))
    other = code_of(torch.nn.Sequential(imported("there", modeling_x=PLAIN.format(2)).Model()))
    assert one == again != "" and other not in ("", one)


def test_so_does_the_rest_of_its_package(imported: Any):
    found = set()
    for at, (model, helper) in enumerate([(1, 1), (2, 1), (1, 2)]):
        sources = {"package__modeling": MODEL.format(model), "package__helper": f"x = {helper}\n"}
        found.add(code_of(imported(f"folder{at}", **sources).Model()))
    assert len(found) == 3
    sources = {"other__modeling": MODEL.format(1), "other__helper": "x = 1\n"}
    assert code_of(imported("elsewhere", **sources).Model()) in found, "its name is a label"


@pytest.mark.parametrize("part", ["quant_method", "scheme", "impl"])
def test_what_computes_with_a_layers_weights_counts(imported: Any, part: str):
    layer = torch.nn.Linear(1, 1)
    setattr(layer, part, imported("here", plugin="class Method:\n    pass\n").Method())
    assert code_of(torch.nn.Sequential(layer))


def test_a_class_that_inherits_from_the_operators_counts(imported: Any):
    base = imported("here", plugin="class Mixin:\n    pass\n").Mixin
    kind = type("Model", (base, torch.nn.Module), {"__module__": "torch.nn"})
    assert code_of(kind())


def test_the_operators_worker_counts(imported: Any):
    worker = imported("here", plugin="class Worker:\n    pass\n").Worker()
    assert code_of(torch.nn.Linear(1, 1), worker) and not code_of(torch.nn.Linear(1, 1), SimpleNamespace())


def test_code_without_a_source_is_refused():
    kind = type("Model", (torch.nn.Module,), {"__module__": "made_up"})
    sys.modules["made_up"] = type(sys)("made_up")
    try:
        with pytest.raises(FingerprintError, match="put it in a file"):
            code_of(kind())
    finally:
        del sys.modules["made_up"]
