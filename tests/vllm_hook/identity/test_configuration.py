"""Everything of vLLM's configuration counts but what is known to be harmless, and no field is left unlooked at."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvmarket.errors import FingerprintError
from kvmarket.fingerprint import Fingerprint
from tests.vllm_hook.engines.versions import INSTALLED, ROOT, interpreters
from tests.vllm_hook.identity.fields import not_looked_at
from vllm_hook.identity.configuration import configuration, described
from vllm_hook.identity.counted import COUNTED
from vllm_hook.identity.environment import environment
from vllm_hook.identity.harmless import HARMLESS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
LONG = {"rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [2.0] * 8, "factor": 2.0}


class Kind(Enum):
    ONE = 1


@dataclasses.dataclass
class KernelConfig:
    """Named as one of vLLM's, of which a field is harmless."""

    moe_backend: object = "auto"
    enable_jit_warmup: bool = True
    new_field: int = 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (Kind.ONE, "ONE"),
        (torch.bfloat16, "torch.bfloat16"),
        (float("inf"), "inf"),
        ({1: (2, 3.5)}, {"1": [2, 3.5]}),
        ({"b", "a"}, ["a", "b"]),
        (KernelConfig, f"{__name__}.KernelConfig"),
        (Path("x/y"), "x/y"),
        (KernelConfig(), {"": "KernelConfig", "moe_backend": "auto", "new_field": 0}),
        (SimpleNamespace(a=SimpleNamespace(b=1)), {"": "SimpleNamespace", "a": {"": "SimpleNamespace", "b": 1}}),
    ],
    ids=repr,
)
def test_values_are_described_by_their_content(value: object, expected: object):
    assert described(value) == expected
    Fingerprint.of(value=described(value))


def test_a_models_own_configuration_counts_without_where_it_came_from():
    def content(**origin: str) -> object:
        return described(
            SimpleNamespace(to_dict=lambda: {"layers": 2, "text_config": {"heads": 4, **origin}, **origin})
        )

    origin = {"_name_or_path": "x", "transformers_version": "5", "_commit_hash": "c", "auto_map": "x--y.Z"}
    assert content() == content(**origin) == {"layers": 2, "text_config": {"heads": 4}}


def test_what_cannot_be_told_apart_is_refused():
    with pytest.raises(FingerprintError, match=r"vllm_config\.a is a object.* give plain values"):
        described(SimpleNamespace(a=object()))
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(FingerprintError, match="refers to itself"):
        described(endless)


@pytest.mark.parametrize("version", interpreters())
def test_every_field_was_looked_at(version: str):
    """A field that is named here counts already. Say whether it should: add it to `counted` or to `harmless`."""
    if version == INSTALLED:
        pytest.importorskip("vllm", reason="vLLM is not installed")
        assert not_looked_at() == []
        return
    command = [interpreters()[version], "-m", "tests.vllm_hook.identity.fields"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stdout.splitlines() if line.startswith("NEW ")] == []


def test_no_field_is_in_both_lists():
    assert [(name, field) for name in COUNTED for field in COUNTED[name] if field in HARMLESS.get(name, ())] == []


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Fingerprints of vLLM's own configuration, made from the arguments of an engine."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.engine.arg_utils import EngineArgs

    def make(hf: dict[str, object] | None = None, model: dict[str, object] | None = None, **arguments: object) -> str:
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps({**LLAMA, **(hf or {})}))
        defaults = {"model": str(folder), "skip_tokenizer_init": True, "max_model_len": 1024, "block_size": 32}
        engine = EngineArgs(**{**defaults, **arguments}).create_engine_config()  # type: ignore[arg-type]
        for name, value in (model or {}).items():
            setattr(engine.model_config, name, value)
        return Fingerprint.of(configuration=configuration(engine)).hex

    return make


NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gpu_memory_utilization": 0.3, "max_num_seqs": 3, "max_num_batched_tokens": 4096, "max_model_len": 512},
        {"seed": 3, "served_model_name": "x", "revision": "v2", "trust_remote_code": True, "load_format": "dummy"},
        {"enable_chunked_prefill": False, "async_scheduling": False, "num_gpu_blocks_override": 9},
        {"speculative_config": NGRAM, "data_parallel_size": 2, "max_logprobs": 3, "disable_log_stats": True},
    ],
    ids=repr,
)
def test_engines_that_compute_the_same_bytes_are_equal(configured: Callable[..., str], arguments: dict[str, object]):
    """Also where each has a folder of its own, as here."""
    assert configured(**arguments) == configured()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kv_cache_dtype": "fp8"},
        {"dtype": "float16"},
        {"block_size": 64},
        {"quantization": "fp8"},
        {"hf_overrides": {"rope_theta": 20000.0}},
        {"model_loader_extra_config": {"enable_multithread_load": True}},
        {"additional_config": {"plugin": "setting"}},
        {"enforce_eager": True},
        {"tensor_parallel_size": 2},
        {"model": {"model_impl": "transformers"}},  # an argument of this would have vLLM start a process
        {"model": {"model_class_overrides": {"LlamaForCausalLM": "mine:Llama"}}},
        {"hf": {"rope_theta": 20000.0}},
        {"hf": {"sliding_window": 128}},
    ],
    ids=repr,
)
def test_engines_that_compute_other_bytes_are_not(configured: Callable[..., str], arguments: dict[str, object]):
    found = configured(**arguments)
    assert found != configured() and found == configured(**arguments)


def test_quantization_of_other_layers_or_kinds_counts(configured: Callable[..., str]):
    settings = [
        {"quantization": "online", "quantization_config": {"linear": "fp8_per_tensor"}},
        {"quantization": "online", "quantization_config": {"linear": "mxfp8"}},
        {"quantization": "online", "quantization_config": {"linear": "fp8_per_tensor", "ignore": ["re:.*k_proj.*"]}},
    ]
    assert len({configured(load_format="dummy", **each) for each in settings}) == len(settings)


def test_the_longest_context_counts_where_vllm_picks_rope_factors_by_it(configured: Callable[..., str]):
    long = {"rope_scaling": LONG, "rope_parameters": {"rope_theta": 10000.0, **LONG}}
    long["original_max_position_embeddings"] = 1024
    assert configured(long, max_model_len=512) != configured(long, max_model_len=1024)


@pytest.mark.parametrize("method", ["ngram", "eagle"])
def test_a_drafter_counts_where_it_has_kv_of_its_own(method: str):
    def of(speculative: object) -> object:
        return configuration(SimpleNamespace(model_config=SimpleNamespace(), speculative_config=speculative))

    assert (of(SimpleNamespace(method=method, model="drafter")) == of(None)) == (method == "ngram")


def test_variables_that_choose_kernels_count_and_those_that_say_where_a_process_is_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    before = environment()
    for name in ("VLLM_DP_RANK", "VLLM_NIXL_SIDE_CHANNEL_PORT", "VLLM_ENGINE_READY_TIMEOUT_S"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert environment() == before
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert environment() == {**before, "VLLM_BATCH_INVARIANT": "True"}
