"""The connector's settings, and the configurations that it refuses: then it does nothing but log the reason."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from kvmarket.errors import MisuseError
from vllm_hook.engine import compat
from vllm_hook.identity.naming import Weights
from vllm_hook.scheduler.drafts import WITHOUT_KV

WAIT_TOKENS = 1024  # waiting pays from so many tokens on: bench/results/h200x2-waits.json (Llama-3.1-8B shape)
_SPECS = ("FullAttentionSpec", "MLAAttentionSpec")
_KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2")
_LARGEST_UNCUT = 64  # tokens a block: larger ones some attention backends read only in parts


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``kv_connector_extra_config``: what an operator may set.

    `address` of the market; `tenant` of this engine; `programs`: SMs that a fetch may use; `wait_tokens`: a request
    waits for a peer that computes at least so many of its tokens (0: never); `min_tokens`: tokens that a hit must have
    beyond the local one; `any_gpu`: share with engines on other models of GPU, which compute slightly different KV and
    must set it too; `block_outermost`: ask vLLM for the layout in which a block is one range of memory (connectors
    under MultiConnector must not ask for different ones); `force`: accept any ``kv_load_failure_policy``.
    """

    address: str | None = None
    tenant: str = ""
    programs: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    wait_tokens: Annotated[int, msgspec.Meta(ge=0)] = WAIT_TOKENS
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    any_gpu: bool = False
    block_outermost: bool = True
    force: bool = False


def settings_of(transfer_config: Any, of_engine: Any = None) -> Settings:
    """Read and check the connector's settings. Raises MisuseError for wrong ones, which stops the engine.

    `of_engine`: the whole engine's ``kv_transfer_config``, if known; its failure policy decides about failed loads.
    """
    extra: Mapping[str, object] = transfer_config.kv_connector_extra_config or {}
    known = Settings.__struct_fields__
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f'did you mean "{near[0]}"? Known' if near else "known"
            raise MisuseError(
                f'kv_connector_extra_config has no setting "{name}"; {meant} are {", ".join(known)}; '
                "leave this one out, or give it the right name"
            )
    try:
        settings = msgspec.convert(dict(extra), Settings)
    except msgspec.ValidationError as error:
        raise MisuseError(
            f"kv_connector_extra_config: {error}; mend it in --kv-transfer-config; known are {', '.join(known)}"
        ) from error
    for policy in (transfer_config.kv_load_failure_policy, (of_engine or transfer_config).kv_load_failure_policy):
        if policy != "recompute" and not settings.force:
            raise MisuseError(
                f'kv_load_failure_policy is "{policy}": a request would fail whenever a peer reuses or loses a block '
                'in mid-fetch; set "kv_load_failure_policy": "recompute" in kv_transfer_config (under MultiConnector '
                'there and in the entry of this connector), or "force": true in kv_connector_extra_config. The whole '
                f"flag: {flag_of(transfer_config)}"
            )
    return settings


def flag_of(transfer_config: Any) -> str:
    """A ``--kv-transfer-config`` flag that works, with the settings of this config, for the operator to paste."""
    said: dict[str, object] = {"kv_connector": "KVMarketConnector", "kv_role": "kv_both"}
    said |= {name: value for name in said if isinstance(value := getattr(transfer_config, name, None), str)}
    said["kv_load_failure_policy"] = "recompute"
    if extra := dict(transfer_config.kv_connector_extra_config or {}):
        said["kv_connector_extra_config"] = extra
    return f"--kv-transfer-config {shlex.quote(json.dumps(said))}"


def layout_asked_for(vllm_config: Any) -> str | None:
    """The KV cache layout to ask vLLM for; vLLM takes another one if the attention backend cannot read this one.

    None, no preference: if the operator says so; if this vLLM has no such layout; for MLA, whose CPU backend fails with
    it although it claims to read any layout; and for blocks of more than 64 tokens, which some backends read only in
    parts that this layout does not allow.
    """
    extra: Mapping[str, object] = vllm_config.kv_transfer_config.kv_connector_extra_config or {}
    model = vllm_config.model_config
    fits = vllm_config.cache_config.block_size <= _LARGEST_UNCUT and model is not None and not model.use_mla
    return compat.block_outermost_layout() if fits and extra.get("block_outermost", True) else None


def refusal(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why this configuration is not supported; empty when it is."""
    return (
        compat.too_old()
        or _model_refusal(vllm_config)
        or _parallel_refusal(vllm_config)
        or _groups_refusal(kv_cache_config.kv_cache_groups)
        or _cache_refusal(vllm_config.cache_config)
    )


def refusal_by_weights(vllm_config: Any, weights: Weights) -> str:
    """Why an engine with these weights cannot take part: they are unknown; empty when it can."""
    return _weights_refusal(vllm_config.model_config.model, weights)


def refusal_beside(transfer_config: Any, of_engine: Any) -> str:
    """Why this connector cannot work beside the engine's other connectors; empty when it can.

    vLLM's OffloadingConnector copies freed pages one step later. It delays their reuse only if it sees them allocated
    to a request, and it never sees pages that another connector loads into. `of_engine`: as in `settings_of`.
    """
    extra: Mapping[str, Any] = getattr(of_engine, "kv_connector_extra_config", None) or {}
    beside = [entry.get("kv_connector") for entry in extra.get("connectors", ())]
    if transfer_config.is_kv_consumer and "OffloadingConnector" in beside:
        return (
            "OffloadingConnector beside it may keep an import's bytes in host memory as those of the block that was in "
            'that page before; leave one of the two out, or give this one "kv_role": "kv_producer": it imports nothing'
        )
    return ""


def _model_refusal(config: Any) -> str:
    if config.model_config.runner_type == "pooling":
        return "pooling models write no KV that is used again"
    speculative = config.speculative_config
    if speculative is not None and speculative.method not in WITHOUT_KV:
        return (
            f"speculative decoding by {speculative.method}: its drafter has KV of its own, which depends on tokens "
            f"beyond a block; supported are {', '.join(WITHOUT_KV)}"
        )
    if getattr(config.model_config, "enable_sleep_mode", False):
        return "sleep mode is on: memory that goes away in sleep cannot be shared with other processes"
    if getattr(config, "diffusion_config", None) is not None:
        return "diffusion models rewrite their KV"
    return ""


def _weights_refusal(model: str, weights: Weights) -> str:
    if weights.name:
        return ""
    return f"it is not known which weights {model} has: {weights.reason or 'they were not looked at; see its log'}"


def _parallel_refusal(config: Any) -> str:
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1 and not compat.tells_stages_apart():
        return "it does not tell its pipeline stages apart; use vLLM 0.26 or newer, or pipeline_parallel_size=1"
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} is {getattr(parallel, name)}; only 1 is supported"
    if getattr(parallel, "enable_fault_tolerance", False):
        return "fault tolerance is on: after a step that failed it goes on, and does not say which step that was"
    overlapping = config.scheduler_config.async_scheduling or parallel.pipeline_parallel_size > 1
    if overlapping and not compat.defers_block_free():
        return (
            "it frees pages that a step in flight may write; use vLLM 0.26 or newer, or async_scheduling=False and "
            "pipeline_parallel_size=1"
        )
    return ""


def _groups_refusal(groups: Any) -> str:
    """To be checked before prefix caching: vLLM itself turns that off for some hybrid models."""
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if len(kinds) > 1:
        return (
            f"the model is hybrid: its KV cache has {len(kinds)} groups ({', '.join(dict.fromkeys(kinds))}); only "
            "models whose layers all share one are supported"
        )
    if not kinds:
        return "the model has no KV cache"
    if kinds[0] not in _SPECS:
        return f"KV cache of kind {kinds[0]}; supported are {', '.join(_SPECS)}"
    return ""


def _cache_refusal(cache: Any) -> str:
    if not cache.enable_prefix_caching:
        return "prefix caching is off"
    if cache.cache_dtype not in _KV_DTYPES:
        return f"KV cache dtype {cache.cache_dtype}; supported are {', '.join(_KV_DTYPES)}"
    if getattr(cache, "calculate_kv_scales", False):
        return "KV scales are calculated at run time and differ between engines"
    return ""
