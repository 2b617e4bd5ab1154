"""The facts of a vLLM engine that its fingerprint hashes: they must agree before one engine may use another's KV."""

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
    """Facts that only a worker knows, as (name, value): device, attention backends, and the layout of a page."""
    return (
        ("device", _device(pages.cache.device)),
        ("attention", compat.attention_backends(vllm_config, pages.names)),
        ("pages", pages.shape),
    )


def stages_of(ranks: Sequence[RankMemory]) -> list[Stage]:
    """The memory of all ranks, in rank order, as a pool's stages. Raises LayoutError if ranks of a stage differ."""
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
    """The engine's fingerprint: a hash of everything that changes a byte of the KV cache, or its meaning.

    With `any_gpu` the compute capability of CUDA devices, and that of CPUs, is left out; engines with and without
    `any_gpu` never agree.
    """
    return with_weights(compared(vllm_config, ranks, any_gpu), weights)


def compared(vllm_config: Any, ranks: Sequence[RankMemory], any_gpu: bool = False) -> dict[str, object]:
    """Everything that must agree, except weights and code of the model, as plain values for `Fingerprint.of`."""
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
    """The fingerprint of an engine with these weights (and their code) and the facts `others`."""
    return Fingerprint.of(**others, weights=weights.name, code=weights.code)


def weights_now(ranks: Sequence[RankMemory]) -> Weights:
    """The current weights of a whole engine: those that its ranks loaded, or those that replaced them."""
    names = {rank: memory.loaded.name for rank, memory in enumerate(ranks)}
    names.update(ranks[0].weights)
    return Weights(repr(sorted(names.items())), code=repr(sorted({memory.loaded.code for memory in ranks})))


def _of_rank(rank: RankMemory, any_gpu: bool) -> dict[str, str]:
    """A worker's facts by name; with `any_gpu` the device is only its kind."""
    return {name: known.split()[0] if any_gpu and name == "device" else known for name, known in rank.facts}


def _device(device: torch.device) -> str:
    """Kind and compute capability of a device: engines with different ones compute slightly different KV."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
