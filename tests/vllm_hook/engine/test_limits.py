"""Settings that stop the engine, and configurations that leave the connector inert."""

from __future__ import annotations

import json
import shlex
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kvmarket.errors import MisuseError
from vllm_hook.engine import compat, limits
from vllm_hook.identity.naming import Weights


def transfer(policy: str = "recompute", **extra: object) -> Any:
    return SimpleNamespace(kv_load_failure_policy=policy, kv_connector_extra_config=extra)


def test_policy_must_be_recompute_unless_forced():
    with pytest.raises(MisuseError, match="kv_load_failure_policy"):
        limits.settings_of(transfer("fail"))
    with pytest.raises(
        MisuseError, match=r"--kv-transfer-config '\{.*\"kv_load_failure_policy\": \"recompute\""
    ) as said:
        limits.settings_of(transfer("fail", tenant="it's ours"))
    flag = shlex.split(str(said.value).partition("The whole flag: ")[2])
    assert flag[0] == "--kv-transfer-config" and json.loads(flag[1]) == {
        "kv_connector": "KVMarketConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"tenant": "it's ours"},
    }
    with pytest.raises(MisuseError, match="under MultiConnector there and in the entry"):
        limits.settings_of(transfer(), transfer("fail"))
    with pytest.raises(MisuseError, match="kv_load_failure_policy"):
        limits.settings_of(transfer("fail"), transfer())
    assert limits.settings_of(transfer("fail", force=True), transfer("fail")).force
    assert limits.settings_of(transfer(address="/tmp/s", tenant="t")).tenant == "t"


@pytest.mark.parametrize(
    ("tokens", "mla", "extra", "asks"),
    [
        (16, False, {}, True),
        (64, False, {}, True),
        (65, False, {}, False),
        (16, True, {}, False),
        (16, None, {}, False),
        (16, False, {"block_outermost": False}, False),
        (16, False, {"block_outermost": True}, True),
    ],
)
def test_the_layout_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tokens: int, mla: bool | None, extra, asks):
    monkeypatch.setattr(compat, "block_outermost_layout", lambda: "a layout")
    model = None if mla is None else SimpleNamespace(use_mla=mla)
    cache = SimpleNamespace(block_size=tokens)
    config = SimpleNamespace(cache_config=cache, model_config=model, kv_transfer_config=transfer(**extra))
    assert limits.layout_asked_for(config) == ("a layout" if asks else None)


@pytest.mark.parametrize("extra", [{"adress": "x"}, {"tenant": 3}, {"force": "yes"}, {"programs": 0}, {"any_gpu": 1}])
def test_wrong_settings_are_not_ignored(extra: dict[str, object]):
    with pytest.raises(MisuseError, match=r"[Kk]nown are address, tenant, programs, wait_tokens, min_tokens, any_gpu"):
        limits.settings_of(transfer(**extra))


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        ("adress", 'has no setting "adress"; did you mean "address"? Known are address, tenant'),
        ("wait_token", 'did you mean "wait_tokens"?'),
        ("zzz", 'has no setting "zzz"; known are address, tenant'),
    ],
)
def test_the_setting_that_was_meant_is_named(unknown: str, said: str):
    with pytest.raises(MisuseError) as error:
        limits.settings_of(transfer(**{unknown: 1}))
    assert said in str(error.value)


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
    return limits.refusal(engine, cache)


@pytest.mark.parametrize(
    ("changes", "specs", "reason"),
    [
        ({}, [FullAttentionSpec()], ""),
        ({"model_config.runner_type": "pooling"}, [FullAttentionSpec()], "pooling"),
        ({"speculative_config.method": "ngram"}, [FullAttentionSpec()], ""),
        ({"speculative_config.method": "eagle"}, [FullAttentionSpec()], "speculative decoding by eagle"),
        ({"speculative_config.method": "draft_model"}, [FullAttentionSpec()], "drafter has KV of its own"),
        ({"model_config.enable_sleep_mode": True}, [FullAttentionSpec()], "sleep mode"),
        ({"parallel_config.pipeline_parallel_size": 2}, [FullAttentionSpec()], ""),
        ({"parallel_config.decode_context_parallel_size": 2}, [FullAttentionSpec()], "decode_context_parallel_size"),
        ({"parallel_config.enable_fault_tolerance": True}, [FullAttentionSpec()], "fault tolerance is on"),
        ({"cache_config.enable_prefix_caching": False}, [FullAttentionSpec()], "prefix caching is off"),
        ({"cache_config.cache_dtype": "int8_per_token_head"}, [FullAttentionSpec()], "KV cache dtype"),
        ({"cache_config.calculate_kv_scales": True}, [FullAttentionSpec()], "KV scales"),
        ({}, [FullAttentionSpec(), MambaSpec()], "hybrid: its KV cache has 2 groups (FullAttentionSpec, MambaSpec)"),
        ({}, [MambaSpec(), MambaSpec(), FullAttentionSpec()], "has 3 groups (MambaSpec, FullAttentionSpec)"),
        ({"cache_config.enable_prefix_caching": False}, [MambaSpec(), FullAttentionSpec()], "the model is hybrid"),
        ({}, [], "no KV cache"),
        ({}, [MambaSpec()], "MambaSpec"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], specs: list[object], reason: str):
    monkeypatch.setattr(compat, "defers_block_free", lambda: True)
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: True)
    assert reason in refusal(config(**changes), groups(*specs))
    assert bool(reason) == bool(refusal(config(**changes), groups(*specs)))


def test_weights_that_nobody_knows():
    engine = config()
    assert limits.refusal_by_weights(engine, Weights("files c0ffee")) == ""
    for found in (Weights(""), Weights("", "nobody saw what was read; do this")):
        reason = limits.refusal_by_weights(engine, found)
        assert "which weights org/model has" in reason and found.reason in reason


@pytest.mark.parametrize("version", ["0.24.1", "0.25.0", "0.9.2"])
def test_versions_whose_multiconnector_hides_pages(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setattr(compat, "version", lambda: version)
    assert "MultiConnector" in refusal(config(), groups(FullAttentionSpec()))
    assert "use vLLM 0.26 or newer" in refusal(config(), groups(FullAttentionSpec()))


@pytest.mark.parametrize("version", ["0.26.0", "0.32.0", "1.0", "0.26.1rc2.dev7+g1234", "dev"])
def test_versions_from_0_26_on(monkeypatch: pytest.MonkeyPatch, version: str):
    monkeypatch.setattr(compat, "version", lambda: version)
    assert refusal(config(), groups(FullAttentionSpec())) == ""


def test_the_lookup_of_hybrid_models_is_mended_where_it_needs_to_be(monkeypatch: pytest.MonkeyPatch):
    """By what the scheduler's module has: 0.26 asks there whether its cache has several groups."""
    scheduler = SimpleNamespace(HybridKVCacheCoordinator=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.scheduler", scheduler)
    for _ in range(2):
        compat.keep_joint_lookup()
        assert not isinstance(SimpleNamespace(), scheduler.HybridKVCacheCoordinator)
    newer = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.scheduler", newer)
    compat.keep_joint_lookup()
    assert vars(newer) == {}


def test_versions_that_do_not_defer_freeing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "defers_block_free", lambda: False)
    assert "step in flight" in refusal(config(), groups(FullAttentionSpec()))
    one_at_a_time = {"scheduler_config.async_scheduling": False}
    assert not refusal(config(**one_at_a_time), groups(FullAttentionSpec()))
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: True)
    pipelined = {**one_at_a_time, "parallel_config.pipeline_parallel_size": 2}
    assert "step in flight" in refusal(config(**pipelined), groups(FullAttentionSpec()))


def test_versions_that_do_not_tell_pipeline_stages_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compat, "defers_block_free", lambda: True)
    monkeypatch.setattr(compat, "tells_stages_apart", lambda: False)
    assert "pipeline stages" in refusal(
        config(**{"parallel_config.pipeline_parallel_size": 2}), groups(FullAttentionSpec())
    )
    assert not refusal(config(), groups(FullAttentionSpec()))
