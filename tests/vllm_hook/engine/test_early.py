"""Wrong settings stop an engine as vLLM makes its configuration: before there is a process that loads a model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from kvmarket.errors import MisuseError
from kvmarket.registry.protocol import address as address_module
from vllm_hook import plugin

OURS = {"kv_connector": plugin.NAME, "kv_role": "kv_both"}
BESIDE = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
RECOMPUTE = {"kv_load_failure_policy": "recompute"}
WHERE = 'kv_connector_extra_config, "address": '
STOPS = "kvmarket stops the engine before its model is loaded: "


@pytest.fixture(autouse=True)
def registered() -> None:
    plugin.register()


def multi(*entries: dict[str, Any], **of_engine: Any) -> dict[str, Any]:
    listed = {"connectors": list(entries)}
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": listed, **of_engine}


WRONG = [
    ({**OURS, **RECOMPUTE, "kv_connector_extra_config": {"adress": "x"}}, 'did you mean "address"?'),
    ({**OURS, **RECOMPUTE, "kv_connector_extra_config": {"programs": 0}}, "$.programs"),
    (OURS, 'set "kv_load_failure_policy": "recompute"'),
    (multi({**OURS, **RECOMPUTE, "kv_connector_extra_config": {"tenent": ""}}, BESIDE, **RECOMPUTE), '"tenant"?'),
    (multi(BESIDE, OURS, **RECOMPUTE), 'set "kv_load_failure_policy": "recompute"'),
    (multi(BESIDE, {**OURS, **RECOMPUTE}), 'set "kv_load_failure_policy": "recompute"'),
]
RIGHT = [
    {**OURS, **RECOMPUTE, "kv_connector_extra_config": {"wait_tokens": 0}},
    multi({**OURS, **RECOMPUTE}, BESIDE, **RECOMPUTE),
    multi(BESIDE, BESIDE),
    {**BESIDE, "kv_connector_extra_config": {"adress": "another connector's"}},
]


@pytest.mark.parametrize(("settings", "reason"), WRONG)
def test_the_configuration_is_not_made(settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, "vllm.kvmarket"), pytest.raises(ValueError, match="kv_") as said:
        VllmConfig(kv_transfer_config=KVTransferConfig(**settings))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "vllm.kvmarket"]
    assert line.startswith(STOPS) and reason in line and "\n" not in line
    assert line.removeprefix(STOPS) in str(said.value)


@pytest.mark.parametrize("settings", RIGHT)
def test_what_is_right_or_not_ours_passes(settings: dict[str, Any], caplog: pytest.LogCaptureFixture):
    VllmConfig(kv_transfer_config=KVTransferConfig(**settings))
    assert not [record for record in caplog.records if record.getMessage().startswith(STOPS)]


def test_the_factory_answers_as_before():
    found = KVConnectorFactory.get_connector_class(KVTransferConfig(**OURS, **RECOMPUTE))
    assert found.__name__ == plugin.NAME
    with pytest.raises(MisuseError, match="kv_load_failure_policy"):
        KVConnectorFactory.get_connector_class(KVTransferConfig(**OURS))
    with pytest.raises(ValueError, match="Unsupported connector type"):
        KVConnectorFactory.get_connector_class(KVTransferConfig(kv_connector="Nobody's", kv_role="kv_both"))


def stopped(address: str | None) -> str:
    """Why a configuration with this address is not made; empty where it is."""
    extra = {} if address is None else {"kv_connector_extra_config": {"address": address}}
    try:
        VllmConfig(kv_transfer_config=KVTransferConfig(**OURS, **RECOMPUTE, **extra))
    except ValueError as error:
        return str(error)
    return ""


def test_an_address_where_no_market_can_be_stops_the_engine(tmp_path: Path):
    (tmp_path / "file").write_text("notes")
    (tmp_path / "closed").mkdir(mode=0o555)
    wrong = {"x" * 120: "too long", "tcp://a:1": "names no Unix socket", str(tmp_path / "file"): "is not a market's"}
    wrong[str(tmp_path / "file" / "s")] = "is no directory"
    if os.geteuid():
        wrong[str(tmp_path / "closed" / "s")] = "you cannot write to"
    for address, why in wrong.items():
        assert WHERE in (said := stopped(address)) and why in said and "; give" in said


def test_an_address_that_may_become_right_by_itself_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert stopped(str(tmp_path / "sub" / "s")) == "" and not (tmp_path / "sub").exists()
    monkeypatch.setattr(address_module, "_HOME", tmp_path)
    (tmp_path / f"kvmarket-{os.geteuid()}").mkdir(mode=0o755)
    assert stopped("name") == stopped(None) == ""


def test_the_variable_is_named_where_it_gives_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVMARKET_ADDRESS", "tcp://a:1")
    assert "KVMARKET_ADDRESS: address 'tcp://a:1' names no Unix socket" in stopped(None)
    assert stopped(str(tmp_path / "s")) == ""
