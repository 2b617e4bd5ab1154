"""The benchmark that asks `vllm serve` runs from end to end, small, on the CPU: three servers."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from bench import report
from bench.engines.process import GPUS
from bench.engines.server import arguments
from bench.hook import ttft_http


def test_arguments_of_the_command_line():
    settings = {"max_model_len": 5, "enforce_eager": True, "kv_transfer_config": {"a": [1]}}
    assert arguments(settings) == ["--max-model-len", "5", "--enforce-eager", "--kv-transfer-config", '{"a": [1]}']


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(GPUS > 0, reason="vLLM's build for GPUs runs no engine on the CPU")
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ttft_http", "--cpu", "--write", "small", "--prompts", "1", "--again", "1"])
    with pytest.raises(SystemExit) as end:
        ttft_http.main()
    assert not end.value.code
    rows = json.loads((tmp_path / "small-ttft-http.json").read_text())["rows"]
    assert {row["column"] for row in rows} >= {ttft_http.PLAIN, ttft_http.OWN, ttft_http.PEER}


def test_an_own_hit_is_compared_with_one_without_the_hook():
    bench = ttft_http.Bench({}, 16)
    bench.samples |= {(ttft_http.PLAIN, 100): [5.0], (ttft_http.OWN, 100): [7.0], (ttft_http.PEER, 100): [10.0]}
    plain, own, peer = bench.rows(rate=0.1, token_bytes=1000)
    assert ("extra" in plain, own["extra"], peer["extra"]) == (False, 2.0, 3.0)
    assert peer["goal"] == 7.0 + 1.1 + 3
