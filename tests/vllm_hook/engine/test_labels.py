"""What `kvmarket top` calls an engine of vLLM."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kvmarket.registry.protocol.status import MAX_LABEL, Label
from vllm_hook.engine.labels import label_of, port_of


def config(model: str = "org/model", **given: object) -> SimpleNamespace:
    return SimpleNamespace(model_config=SimpleNamespace(model=model, **given))


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (config(), "org/model"),
        (config(served_model_name=None), "org/model"),
        (config(served_model_name="served"), "served"),
        (config(served_model_name=["first", "second"]), "first"),
        (config(served_model_name=[]), "org/model"),
        (config("x" * MAX_LABEL + "end"), "x" * (MAX_LABEL - 3) + "end"),
        (config("\udcff"), "?"),
    ],
)
def test_the_name_of_the_model(made: SimpleNamespace, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m", "--port", "8001"])
    assert label_of(made) == Label(name, 8001)


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        ("vllm serve m", 8000),
        ("vllm serve m --port 8001", 8001),
        ("vllm serve m --port=8002", 8002),
        ("vllm serve m --config settings.yaml", 0),
        ("vllm serve m --config=settings.yaml --port 8003", 8003),
        ("vllm serve m --port", 0),
        ("vllm serve m --port none", 0),
        ("vllm serve m --port 65536", 0),
        ("own_server.py --port 8004", 8004),
        ("own_server.py", 0),
        ("", 0),
    ],
)
def test_the_port_of_the_server(arguments: str, port: int):
    assert port_of(arguments.split()) == port
