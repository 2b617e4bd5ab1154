"""Settings that stop the engine, and configurations that leave the connector inert."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmarket.errors import MisuseError
from vllm_hook import compat, facts, limits, plugin


def transfer(policy: str = "recompute", **extra: object) -> Any:
    return SimpleNamespace(kv_load_failure_policy=policy, kv_connector_extra_config=extra)


def test_policy_must_be_recompute_unless_forced():
    with pytest.raises(MisuseError, match="kv_load_failure_policy"):
        limits.settings_of(transfer("fail"))
    with pytest.raises(MisuseError, match="under MultiConnector there and in the entry"):
        limits.settings_of(transfer(), transfer("fail"))
    with pytest.raises(MisuseError, match="kv_load_failure_policy"):
        limits.settings_of(transfer("fail"), transfer())
    assert limits.settings_of(transfer("fail", force=True), transfer("fail")).force
    assert limits.settings_of(transfer(address="/tmp/s", tenant="t")).tenant == "t"


@pytest.mark.parametrize("extra", [{"adress": "x"}, {"tenant": 3}, {"force": "yes"}, {"programs": 0}, {"any_gpu": 1}])
def test_wrong_settings_are_not_ignored(extra: dict[str, object]):
    with pytest.raises(MisuseError, match="known are address, tenant, programs, wait_tokens, min_tokens, any_gpu"):
        limits.settings_of(transfer(**extra))


def test_no_imports_beside_a_connector_that_still_reads_freed_pages():
    both, offers = SimpleNamespace(is_kv_consumer=True), SimpleNamespace(is_kv_consumer=False)
    engine = transfer(connectors=[{"kv_connector": "KVMarketConnector"}, {"kv_connector": "OffloadingConnector"}])
    assert "kv_producer" in limits.refusal_beside(both, engine)
    assert limits.refusal_beside(offers, engine) == ""
    assert limits.refusal_beside(both, transfer(connectors=[{"kv_connector": "KVMarketConnector"}])) == ""
    assert limits.refusal_beside(both, transfer()) == limits.refusal_beside(both, None) == ""


class FullAttentionSpec:
    pass


class MambaSpec:
    pass


def config(**changes: object) -> Any:
    values: dict[str, Any] = {
        "model_config.runner_type": "generate",
        "model_config.model": "org/model",
        "model_config.revision": None,
        "model_config.seed": 0,
        "model_config.hf_config._commit_hash": "c0ffee",
        "load_config.load_format": "auto",
        "parallel_config.pipeline_parallel_size": 1,
        "scheduler_config.async_scheduling": True,
        "cache_config.enable_prefix_caching": True,
        "cache_config.cache_dtype": "auto",
        "cache_config.calculate_kv_scales": False,
        **changes,
    }
    root = SimpleNamespace()
    for path, value in values.items():
        *parents, name = path.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                setattr(at, parent, SimpleNamespace())
            at = getattr(at, parent)
        setattr(at, name, value)
    root.speculative_config = getattr(root, "speculative_config", None)
    return root


def groups(*specs: object) -> Any:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec) for spec in specs])


def refusal(engine: Any, cache: Any) -> str:
    return limits.refusal(engine, cache, facts.weights_of(engine))


@pytest.mark.parametrize(
    ("changes", "specs", "reason"),
    [
        ({}, [FullAttentionSpec()], ""),
        ({"model_config.runner_type": "pooling"}, [FullAttentionSpec()], "pooling"),
        ({"speculative_config.method": "ngram"}, [FullAttentionSpec()], ""),
        ({"speculative_config.method": "eagle"}, [FullAttentionSpec()], "speculative decoding by eagle"),
        ({"speculative_config.method": "draft_model"}, [FullAttentionSpec()], "drafter has KV of its own"),
        ({"model_config.enable_sleep_mode": True}, [FullAttentionSpec()], "sleep mode"),
        ({"model_config.hf_config._commit_hash": None}, [FullAttentionSpec()], "nothing says which weights org/model"),
        ({"parallel_config.pipeline_parallel_size": 2}, [FullAttentionSpec()], ""),
        ({"parallel_config.decode_context_parallel_size": 2}, [FullAttentionSpec()], "decode_context_parallel_size"),
        ({"cache_config.enable_prefix_caching": False}, [FullAttentionSpec()], "prefix caching is off"),
        ({"cache_config.cache_dtype": "int8_per_token_head"}, [FullAttentionSpec()], "KV cache dtype"),
        ({"cache_config.calculate_kv_scales": True}, [FullAttentionSpec()], "KV scales"),
        ({}, [FullAttentionSpec(), FullAttentionSpec()], "2 KV cache groups"),
        ({}, [MambaSpec()], "MambaSpec"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], specs: list[object], reason: str):
    monkeypatch.setattr(compat, "defers_block_free", lambda: True)
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: True)
    assert reason in refusal(config(**changes), groups(*specs))
    assert bool(reason) == bool(refusal(config(**changes), groups(*specs)))


def test_weights_that_were_replaced_while_the_engine_was_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "defers_block_free", lambda: True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    engine = config(**{"model_config.model": str(tmp_path)})
    assert refusal(engine, groups(FullAttentionSpec())) == "", "nobody knows when this process began"
    monkeypatch.setattr(plugin, "_began", weights.stat().st_ctime)
    assert refusal(engine, groups(FullAttentionSpec())) == ""
    monkeypatch.setattr(plugin, "_began", weights.stat().st_ctime - 0.001)
    assert "start it again" in refusal(engine, groups(FullAttentionSpec()))
    engine.load_config.load_format = "dummy"
    assert refusal(engine, groups(FullAttentionSpec())) == ""


def test_a_process_that_is_forked_begins_anew():
    """vLLM forks its engine core from a process that may have begun long before the weights were saved."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    plugin.register()
    saved = time.time()
    process = context.Process(target=lambda: theirs.send(plugin.began()))
    process.start()
    assert mine.poll(20) and plugin.began() <= saved <= mine.recv()
    process.join()


def test_versions_that_do_not_defer_freeing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "defers_block_free", lambda: False)
    assert "0.24" in refusal(config(), groups(FullAttentionSpec()))
    one_at_a_time = {"scheduler_config.async_scheduling": False}
    assert not refusal(config(**one_at_a_time), groups(FullAttentionSpec()))
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: True)
    pipelined = {**one_at_a_time, "parallel_config.pipeline_parallel_size": 2}
    assert "0.24" in refusal(config(**pipelined), groups(FullAttentionSpec()))


def test_versions_that_do_not_tell_pipeline_stages_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "defers_block_free", lambda: True)
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: False)
    assert "0.26" in refusal(config(**{"parallel_config.pipeline_parallel_size": 2}), groups(FullAttentionSpec()))
    assert not refusal(config(), groups(FullAttentionSpec()))
