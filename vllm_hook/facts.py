"""What must agree between two vLLM engines before one may use the other's KV: the facts behind the fingerprint."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kvmarket.errors import LayoutError
from kvmarket.fingerprint import Fingerprint
from kvmarket.offer import Stage
from vllm_hook import compat
from vllm_hook.metadata import RankMemory
from vllm_hook.pages import Pages
from vllm_hook.weights import Names

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_VOLATILE = ("_name_or_path", "name_or_path", "transformers_version", "_commit_hash")


class Weights(NamedTuple):
    """What tells a model's weights from others, and when their files were last changed (``time.time``; 0: no files).

    The name is empty where nothing says so: then other weights may go by the same one. Where the files were changed
    after vLLM began to load them, the model may have what was there before: the name would be that of the new ones. A
    clock of a file server that is late by more than that hides it.
    """

    name: str
    changed: float = 0.0


def stage_of() -> int:
    """This worker's pipeline stage."""
    from vllm.distributed.parallel_state import get_pp_group

    return int(get_pp_group().rank_in_group)


def rank_of() -> int:
    """This worker's rank in its engine: the tensor-parallel ranks of one pipeline stage after another."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return stage_of() * int(group.world_size) + int(group.rank_in_group)


def of_worker(vllm_config: Any, pages: Pages) -> tuple[tuple[str, str], ...]:
    """What only a worker knows: device, attention backends, and the meaning of a page's bytes."""
    return (
        ("device", _device(pages.cache.device)),
        ("attention", compat.attention_backends(vllm_config, pages.names)),
        ("pages", pages.shape),
    )


def stages_of(ranks: Sequence[RankMemory]) -> list[Stage]:
    """The memory of all ranks, by rank, as the stages of a pool. Raises LayoutError when ranks of a stage differ."""
    stages = []
    for _, group in itertools.groupby(ranks, key=lambda rank: rank.stage):
        first, *others = members = list(group)
        memories = tuple(rank.memory for rank in members if rank.memory is not None)
        if first.layout is None or len(memories) != len(members):
            raise LayoutError("a rank has no memory to share; see its log for why")
        if any((other.layout, other.facts) != (first.layout, first.facts) for other in others):
            raise LayoutError("tensor-parallel ranks with different KV caches are not supported; use equal devices")
        stages.append(Stage(first.layout, memories))
    return stages


def fingerprint(vllm_config: Any, ranks: Sequence[RankMemory], weights: Weights, any_gpu: bool = False) -> Fingerprint:
    """Hash of everything that changes a byte of the KV cache, or the meaning of one.

    With `any_gpu` GPUs of different compute capability do not differ; with and without it never agree.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    stages = {rank.stage: _of_rank(rank, any_gpu) for rank in ranks}
    return Fingerprint.of(
        vllm=compat.version(),
        model=model.model,
        revision=model.revision,
        code_revision=getattr(model, "code_revision", None),
        implementation=str(getattr(model, "model_impl", "auto")),
        dtype=str(model.dtype),
        config=(config := _config(model.hf_config)),
        rope_length=model.max_model_len if "longrope" in config else None,  # vLLM picks its long or short factors by it
        quantization=str(model.quantization),
        weights=weights.name,
        kv_dtype=str(cache.cache_dtype),
        tensor_parallel=len(ranks) // len(stages),
        pipeline_parallel=len(stages),
        stages=repr(list(stages.values())),
    )


def with_weights(started: Fingerprint, weights: Names) -> Fingerprint:
    """The fingerprint of an engine that started as `started` and has these weights now."""
    return Fingerprint.of(started=started.hex, weights=weights) if weights else started


def _of_rank(rank: RankMemory, any_gpu: bool) -> list[tuple[str, str]]:
    """What only a worker knows, without the model of its GPU where that does not count."""
    return [(name, known.split()[0] if any_gpu and name == "device" else known) for name, known in rank.facts]


def weights_of(vllm_config: Any) -> Weights:
    """Which weights: of a folder or a file what lies there now, of a hub's name the commit that it stood for.

    A folder into which vLLM pulls only the configuration, and streams the weights from elsewhere, has no name for them.
    """
    model = vllm_config.model_config
    if str(vllm_config.load_config.load_format) == "dummy":
        return Weights(f"dummy, seed {model.seed}")
    path = Path(model.model)
    if not path.exists():
        return Weights(str(getattr(model.hf_config, "_commit_hash", None) or _commit(model.model, model.revision)))
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(file.name, file.stat()) for file in files if file.suffix in _WEIGHTS]
    if not found:
        return Weights("")
    facts = [(name, was.st_dev, was.st_ino, was.st_size, was.st_mtime_ns) for name, was in found]
    return Weights(repr(facts), max(was.st_ctime for _, was in found))


def _commit(name: str, revision: str | None) -> str:
    """The commit of a hub's model in the local cache, for configurations that do not tell it; empty if it is not there.

    There a file lies in a folder with the commit's name.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "params.json")]
    except ValueError:  # no name of a hub
        return ""
    return next((Path(path).parent.name for path in found if isinstance(path, str)), "")


def _config(hf_config: Any) -> str:
    """The model's configuration as text (rope scaling, sliding windows, ...), without what does not change a byte."""
    content = {key: value for key, value in hf_config.to_dict().items() if key not in _VOLATILE}
    return json.dumps(content, sort_keys=True, default=str)


def _device(device: torch.device) -> str:
    """The kind of device: engines on different GPU generations compute different KV."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
