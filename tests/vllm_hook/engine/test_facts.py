"""Kept apart by the fingerprint: whatever changes a byte of the KV cache; what changes none keeps nobody apart."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_hook.engine import compat, facts
from vllm_hook.identity import files
from vllm_hook.identity.naming import Weights
from vllm_hook.metadata import RankMemory
from vllm_hook.worker.pages import Pages

FACTS = (("device", "cuda 9.0"), ("attention", "FLASH_ATTN"), ("pages", "p"))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One version of vLLM, no environment, and a runtime directory of the test's own."""
    monkeypatch.setattr(compat, "version", lambda: "0.32.0")
    monkeypatch.setattr(facts, "environment", dict)
    monkeypatch.setattr(files, "_TICK", 0.005)
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def config(model: str | Path = "org/model", load_format: str = "dummy", **changes: object) -> Any:
    """A configuration: which fields of vLLM's count is tested where they are listed."""
    hf = SimpleNamespace(to_dict=lambda: {"num_hidden_layers": 2})
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(model), seed=0, dtype=torch.bfloat16, hf_config=hf),
        cache_config=SimpleNamespace(cache_dtype="auto", **changes),
        load_config=SimpleNamespace(load_format=load_format),
    )


def of(
    changed: Any = None, ranks: int = 1, any_gpu: bool = False, weights: str = "w", code: str = "", **known: str
) -> str:
    """Fingerprint of an engine with this configuration and these weights, whose workers say this."""
    said = tuple({**dict(FACTS), **known}.items())
    memories = [RankMemory(None, None, said) for _ in range(ranks)]
    return facts.fingerprint(changed or config(), memories, Weights(weights, code=code), any_gpu).hex


@pytest.mark.parametrize(
    "other",
    [
        lambda: of(config(block_size=32)),
        lambda: of(ranks=2),
        lambda: of(weights="v"),
        lambda: of(code="c"),
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


def test_the_version_and_the_environment_count(monkeypatch: pytest.MonkeyPatch):
    found = {of()}
    monkeypatch.setattr(facts, "environment", lambda: {"VLLM_BATCH_INVARIANT": "1"})
    found.add(of())
    monkeypatch.setattr(compat, "version", lambda: "0.31.0")
    assert len({*found, of()}) == 3


def test_other_models_of_gpu_share_when_both_say_so():
    hopper, ampere = {"device": "cuda 9.0"}, {"device": "cuda 8.0"}
    assert of(**hopper) != of(**ampere)
    assert of(any_gpu=True, **hopper) == of(any_gpu=True, **ampere)
    assert of(any_gpu=True, **hopper) != of(**hopper), "who does not say so shares with nobody who does"
    assert of(any_gpu=True, device="cpu AVX512") != of(any_gpu=True, **hopper)
    assert of(any_gpu=True, attention="FLASHINFER") != of(any_gpu=True)


def weights(model: str | Path, load_format: str = "auto") -> str:
    return facts.weights_of(config(model, load_format)).name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with two sets of weights, of which vLLM reads one or the other."""
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "consolidated.safetensors").write_bytes(b"base weights")
    (folder / "model.safetensors").write_bytes(b"tuned weights")
    return folder


def test_the_same_weights_by_five_paths(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copied, linked, link = tmp_path / "copied", tmp_path / "linked", tmp_path / "link"
    for folder in (copied, linked):
        folder.mkdir()
    for path in checkpoint.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
        os.link(path, linked / path.name)
    link.symlink_to(checkpoint.name)
    monkeypatch.chdir(tmp_path)
    paths = [checkpoint, f"{checkpoint}/", "v1", "./v1", link, copied, linked]
    assert len({weights(path) for path in paths}) == 1 and weights(checkpoint)
    (copied / "README.md").write_text("other")
    assert weights(copied) == weights(checkpoint)


def test_one_folder_with_two_sets_of_weights(checkpoint: Path, tmp_path: Path):
    one, both = weights(checkpoint), weights(checkpoint, "hf")
    assert one and both and one != both
    (alone := tmp_path / "v2").mkdir()
    (alone / "model.safetensors").write_bytes(b"tuned weights")
    other = weights(alone)
    assert other not in (one, both, "")
    assert other == weights(alone, "safetensors"), "what is read counts, not how"
    assert other == weights(checkpoint / "model.safetensors"), "a file itself, as those of GGUF are given"


def test_other_bytes_of_equal_size_and_time(checkpoint: Path):
    file = checkpoint / "model.safetensors"
    os.utime(file, (1, 1))
    before = weights(checkpoint, "hf")
    file.write_bytes(b"other weights")
    os.utime(file, (1, 1))
    assert weights(checkpoint, "hf") != before


def test_a_link_without_a_file_beside_good_weights(checkpoint: Path):
    before = weights(checkpoint, "hf")
    (checkpoint / "pytorch_model.bin").symlink_to("/gone")
    assert weights(checkpoint, "hf") == before != ""
    (checkpoint / "more.safetensors").symlink_to("/gone")
    assert facts.weights_of(config(checkpoint, "hf")).name == "", "vLLM itself cannot read this one"


def test_weights_that_are_not_there_have_no_name(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    for model in (tmp_path, tmp_path / "nowhere"):
        found = facts.weights_of(config(model, "auto"))
        assert not found.name and found.reason


def test_random_weights_are_told_apart_by_their_seed():
    engines = [config(), config(), config()]
    engines[2].model_config.seed = 1
    one, same, other = (facts.weights_of(engine).name for engine in engines)
    assert one == same != other


def test_the_weights_of_an_engine_are_those_of_all_its_ranks_by_now():
    def engine(*names: str, changed: tuple[tuple[int, str], ...] = (), code: str = "") -> Weights:
        return facts.weights_now([RankMemory(None, None, weights=changed, loaded=Weights(n, code=code)) for n in names])

    kinds = [
        engine("a"),
        engine("a", "b"),
        engine("b", "a"),
        engine("a", code="c"),
        engine("a", "b", changed=((1, "c"),)),
    ]
    assert len(set(kinds)) == len(kinds)
    assert engine("a", "b", changed=((1, "c"),)) == engine("a", "c"), "an update and a start with them are the same"
    assert engine("a", "b", changed=()) == engine("a", "b")


def pages(block_size: int, dtype: torch.dtype = torch.float32, order: tuple[int, ...] = (0, 1, 2, 3)) -> Pages:
    """The pages of a cache of 8 blocks, as the CPU build lays it out, or in another order of strides."""
    sizes = (8, 2, block_size, 64)
    tensor = torch.zeros([sizes[dim] for dim in order], dtype=dtype).permute([order.index(dim) for dim in range(4)])
    spec = SimpleNamespace(page_size_bytes=tensor[0].numel() * tensor.element_size(), block_size=block_size)
    groups = [SimpleNamespace(kv_cache_spec=spec)]
    return Pages({"layer": tensor}, SimpleNamespace(kv_cache_groups=groups, num_blocks=8))


def test_other_block_sizes_element_types_and_orders_are_kept_apart():
    assert pages(32).shape == pages(32).shape
    kinds = [pages(32), pages(64), pages(32, torch.bfloat16), pages(32, torch.float16), pages(32, order=(0, 2, 1, 3))]
    assert len({of(pages=each.shape) for each in kinds}) == len(kinds)


def test_a_worker_says_its_device_its_attention_and_what_its_pages_mean(monkeypatch: pytest.MonkeyPatch):
    def said(kind: Pages, backend: str) -> str:
        monkeypatch.setattr(compat, "attention_backends", lambda config, layers: f"{backend} of {','.join(layers)}")
        memory = RankMemory(None, None, facts.of_worker(None, kind))
        return facts.fingerprint(config(), [memory], Weights("w")).hex

    kinds = [said(pages(32), "A"), said(pages(32), "B"), said(pages(32, order=(0, 2, 1, 3)), "A")]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert len({*kinds, said(pages(32), "A")}) == 4


def test_attention_backends_are_named_by_the_layers_themselves():
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    class Layer(AttentionLayerBase):
        def __init__(self, name: str) -> None:
            self.name = name

        def get_attn_backend(self) -> Any:
            return SimpleNamespace(get_name=lambda: self.name)

        def get_kv_cache_spec(self, vllm_config: Any) -> None:
            return None

    layers = {"a": Layer("FLASH_ATTN"), "b": Layer("FLASHINFER"), "c": Layer("FLASH_ATTN"), "d": Layer("UNUSED")}
    engine = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context=layers))
    assert compat.attention_backends(engine, ("a", "b", "c")) == "FLASHINFER,FLASH_ATTN"
    assert compat.attention_backends(engine, ("a", "c")) == "FLASH_ATTN"
