"""What must agree between two vLLM engines before one may use the other's KV: the facts behind the fingerprint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kvmarket.errors import LayoutError
from kvmarket.fingerprint import Fingerprint
from kvmarket.market.offer import Stage
from vllm_hook.engine import compat
from vllm_hook.identity.configuration import configuration
from vllm_hook.identity.environment import environment
from vllm_hook.identity.naming import Weights as Weights
from vllm_hook.identity.naming import weights_of as weights_of
from vllm_hook.metadata import RankMemory
from vllm_hook.worker.pages import Pages


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
    return with_weights(compared(vllm_config, ranks, any_gpu), weights)


def compared(vllm_config: Any, ranks: Sequence[RankMemory], any_gpu: bool = False) -> dict[str, object]:
    """Everything that must agree but the weights and the code of the model, as plain values."""
    stages = {rank.stage: _of_rank(rank, any_gpu) for rank in ranks}
    return {
        "vllm": compat.version(),
        "configuration": configuration(vllm_config),
        "environment": environment(),
        "tensor_parallel": len(ranks) // len(stages),
        "pipeline_parallel": len(stages),
        "stages": list(stages.values()),
    }


def with_weights(others: Mapping[str, object], weights: Weights) -> Fingerprint:
    """The fingerprint of an engine that has these weights, and `others` for everything else."""
    return Fingerprint.of(**others, weights=weights.name, code=weights.code)


def weights_now(ranks: Sequence[RankMemory]) -> Weights:
    """The weights of a whole engine: those that its ranks have loaded, or have instead by now."""
    names = {rank: memory.loaded.name for rank, memory in enumerate(ranks)}
    names.update(ranks[0].weights)
    return Weights(repr(sorted(names.items())), code=repr(sorted({memory.loaded.code for memory in ranks})))


def _of_rank(rank: RankMemory, any_gpu: bool) -> dict[str, str]:
    """What only a worker knows, without the model of its GPU where that does not count."""
    return {name: known.split()[0] if any_gpu and name == "device" else known for name, known in rank.facts}


def _device(device: torch.device) -> str:
    """The kind of device: engines on different GPU generations compute different KV."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
