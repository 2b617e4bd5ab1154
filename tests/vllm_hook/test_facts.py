"""Kept apart by the fingerprint: whatever changes a byte of the KV cache; what changes none keeps nobody apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from vllm_hook import compat, facts
from vllm_hook.metadata import RankMemory
from vllm_hook.pages import Pages

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTS = (("device", "cuda 9.0"), ("attention", "FLASH_ATTN"), ("pages", "p"))


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda: "0.32.0")


def config(hf: dict[str, object] | None = None, **changes: object) -> Any:
    """The parts of vLLM's configuration that are looked at."""
    content = {"num_hidden_layers": 2, "max_position_embeddings": 4096, **(hf or {})}
    model: dict[str, object] = {
        "model": "org/model",
        "revision": None,
        "code_revision": None,
        "model_impl": "auto",
        "dtype": torch.bfloat16,
        "quantization": None,
        "seed": 0,
        "max_model_len": 4096,
        "hf_config": SimpleNamespace(to_dict=lambda: content, _commit_hash=(hf or {}).get("_commit_hash")),
    }
    cache, load = {"cache_dtype": "auto"}, {"load_format": "auto"}
    for part in (model, cache, load):
        part.update({name: value for name, value in changes.items() if name in part})
    return SimpleNamespace(
        model_config=SimpleNamespace(**model),
        cache_config=SimpleNamespace(**cache),
        load_config=SimpleNamespace(**load),
    )


def of(changed: Any = None, ranks: int = 1, any_gpu: bool = False, **known: str) -> str:
    """Fingerprint of an engine with this configuration, whose workers say this."""
    said = tuple({**dict(FACTS), **known}.items())
    memories = [RankMemory(None, None, said) for _ in range(ranks)]
    engine = changed or config()
    return facts.fingerprint(engine, memories, facts.weights_of(engine), any_gpu).hex


@pytest.mark.parametrize(
    "other",
    [
        lambda: of(config(model="org/another")),
        lambda: of(config(revision="v2")),
        lambda: of(config(code_revision="v2")),
        lambda: of(config(dtype=torch.float16)),
        lambda: of(config(quantization="fp8")),
        lambda: of(config(cache_dtype="fp8")),
        lambda: of(config(model_impl="transformers")),
        lambda: of(config(load_format="dummy")),
        lambda: of(config({"rope_theta": 20000.0})),
        lambda: of(config({"rope_scaling": LLAMA3})),
        lambda: of(config({"rope_scaling": {**LLAMA3, "factor": 4.0}})),
        lambda: of(config({"sliding_window": 128})),
        lambda: of(config({"quantization_config": {"quant_method": "awq"}})),
        lambda: of(config({"_commit_hash": "abc"})),
        lambda: of(ranks=2),
        lambda: of(device="cuda 8.0"),
        lambda: of(device="cpu AVX512"),
        lambda: of(attention="FLASHINFER"),
        lambda: of(pages="q"),
    ],
)
def test_engines_that_compute_other_bytes_are_kept_apart(other: Any):
    assert of() == of(config())
    assert other() != of()
    assert other() == other()


def test_every_factor_of_rope_scaling_counts():
    assert of(config({"rope_scaling": LLAMA3})) != of(config({"rope_scaling": {**LLAMA3, "factor": 4.0}}))


def test_longest_context_counts_where_vllm_picks_rope_factors_by_it():
    assert of(config(max_model_len=8192)) == of()
    long = {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [2.0]}}
    assert of(config(long, max_model_len=8192)) != of(config(long))


def test_seed_counts_for_random_weights_alone():
    assert of(config(seed=1)) == of()
    assert of(config(seed=1, load_format="dummy")) != of(config(load_format="dummy"))


def test_overrides_of_a_model_reach_the_fingerprint():
    """As vLLM's ``hf_overrides`` apply them: to the configuration object that the model is built from."""
    plain, scaled = config(), config()
    plain.model_config.hf_config, scaled.model_config.hf_config = LlamaConfig(), LlamaConfig()
    assert of(plain) == of(plain)
    scaled.model_config.hf_config.update({"rope_theta": 5e5})
    assert of(plain) != of(scaled)


def test_where_a_model_lies_and_who_wrote_its_config_do_not_count():
    assert of(config({"_name_or_path": "here", "transformers_version": "5.0"})) == of()


def test_other_models_of_gpu_share_when_both_say_so():
    hopper, ampere = {"device": "cuda 9.0"}, {"device": "cuda 8.0"}
    assert of(**hopper) != of(**ampere)
    assert of(any_gpu=True, **hopper) == of(any_gpu=True, **ampere)
    assert of(any_gpu=True, **hopper) != of(**hopper), "who does not say so shares with nobody who does"
    assert of(any_gpu=True, device="cpu AVX512") != of(any_gpu=True, **hopper)
    assert of(any_gpu=True, attention="FLASHINFER") != of(any_gpu=True)


def weights(model: str | Path, commit: str | None = None, revision: str | None = None) -> str:
    return facts.weights_of(config({"_commit_hash": commit}, model=str(model), revision=revision)).name


def test_weights_of_a_folder_are_its_files_as_they_are_now(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "README.md").write_bytes(b"one")
    first = weights(tmp_path)
    (tmp_path / "README.md").write_bytes(b"two")
    assert weights(tmp_path) == first
    new = tmp_path / "new"
    new.write_bytes(b"two")
    new.replace(tmp_path / "model.safetensors")
    assert weights(tmp_path) != first


def test_weights_in_one_file(tmp_path: Path):
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    for file in (one, two):
        file.write_bytes(b"same size")
    assert weights(one) and weights(one) != weights(two)


def test_weights_that_nothing_tells_apart_have_no_name(tmp_path: Path):
    """vLLM pulls the configuration of a model in object storage into a folder, and streams its weights."""
    (tmp_path / "config.json").write_text("{}")
    assert weights(tmp_path) == "" and weights("org/model:Q4_K_M") == "" and weights("org/nowhere") == ""


def test_hub_names_are_told_apart_by_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert weights("org/model", "a") != weights("org/model", "b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision, commit in (("main", "c0ffee"), ("v2", "decade")):
        snapshot = tmp_path / "models--org--model" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "params.json").write_text("{}")
        ref = tmp_path / "models--org--model" / "refs" / revision
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
    assert (weights("org/model"), weights("org/model", revision="v2")) == ("c0ffee", "decade")


def pages(block_size: int, dtype: torch.dtype = torch.float32) -> Pages:
    """The pages of a cache of 8 blocks, as the CPU build lays it out."""
    tensor = torch.zeros(8, 2, block_size, 64, dtype=dtype)
    spec = SimpleNamespace(page_size_bytes=tensor[0].numel() * tensor.element_size(), block_size=block_size)
    groups = [SimpleNamespace(kv_cache_spec=spec)]
    return Pages({"layer": tensor}, SimpleNamespace(kv_cache_groups=groups, num_blocks=8))


def test_other_block_sizes_and_element_types_are_kept_apart():
    assert pages(32).shape == pages(32).shape
    kinds = [pages(32), pages(64), pages(32, torch.bfloat16), pages(32, torch.float16)]
    assert len({of(pages=each.shape) for each in kinds}) == len(kinds)
