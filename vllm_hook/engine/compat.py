"""What differs between the versions of vLLM that the hook serves: feature tests, not version numbers."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

TESTED = ("0.26", "0.27", "0.28", "0.29", "0.30", "0.31", "0.32", "0.33")  # by bench/results/cpu-vllm-versions.json


def version() -> str:
    """The version of vLLM that is installed."""
    return str(importlib.import_module("vllm").__version__)


def tested_version() -> str:
    """The version of vLLM, and a remark when the hook was never tested with it."""
    found = version()
    tested = ".".join(found.split(".")[:2]) in TESTED
    return f"{found} (tested)" if tested else f"{found} (not tested: tested are {', '.join(TESTED)})"


def too_old() -> str:
    """Why this version of vLLM cannot be served; empty where it can."""
    numbers = re.match(r"(\d+)\.(\d+)", version())
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= (0, 26):
        return ""
    return (
        "up to 0.25 vLLM's MultiConnector shows a connector no pages that another one fills, so their old offers would "
        "stand; use vLLM 0.26 or newer"
    )


def hit_source() -> Any:
    """What vLLM's metrics call tokens that came from a peer (0.32+); None where they have no name for it."""
    try:
        module = importlib.import_module("vllm.v1.metrics.cache_hit_source")
    except ImportError:
        return None
    return getattr(module.CacheHitSource, "P2P", None)


def defers_block_free() -> bool:
    """Whether the scheduler keeps a freed page from being reused while a step in flight may still write it."""
    from vllm.v1.core.sched.scheduler import Scheduler

    return hasattr(Scheduler, "_drain_deferred_frees")


def transfer_config_of_engine() -> Any:
    """The engine's own ``kv_transfer_config``: MultiConnector shows each of its connectors only that one's entry.

    Known where a worker makes its connector; None elsewhere.
    """
    config = importlib.import_module("vllm.config").get_current_vllm_config_or_none()
    return config.kv_transfer_config if config is not None else None


def tells_stages_apart() -> bool:
    """Whether a connector hears of which pipeline stage a worker is."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    return hasattr(KVConnectorBase_V1, "set_xfer_handshake_metadata_pp_aware")


def block_outermost_layout() -> str | None:
    """The name of the layout in which a block of all layers is one range of memory (0.30+); None before."""
    try:
        module = importlib.import_module("vllm.v1.kv_cache_layout")
    except ImportError:
        return None
    name = "BLHNC"
    return name if hasattr(module.KVCacheLayout, name) else None


def can_watch(pool: Any) -> bool:
    """Whether the block pool can say that it hands a page out again (0.30+)."""
    return hasattr(pool, "unpin_blocks")


def watch_reuse(pool: Any, slots: Sequence[int], on_reuse: Callable[[Any], None]) -> None:
    """Have `on_reuse` called once for each of these pages when the pool hands it out, from within ``schedule()``.

    The pages must be in use: then touching and unpinning them changes no order of eviction. There is one callback per
    page; one that somebody else has set is left alone, and where the pool knows none this does nothing: retirement
    never rests on it alone.
    """
    if not can_watch(pool):
        return
    taken = getattr(pool, "_reuse_watchers", {})
    blocks = [pool.blocks[slot] for slot in slots if taken.get(slot, on_reuse) == on_reuse]
    blocks = [block for block in blocks if block.ref_cnt > 0 and not block.is_null]
    pool.touch(blocks)
    pool.unpin_blocks(blocks, on_reuse)


def watch_reset(pool: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Have `before` called ahead of every reset of the pool's prefix cache, and `after` when it has been emptied.

    ``reset_prefix_cache()`` without ``reset_connector`` never calls a connector, so this one pool's method is wrapped.
    """
    reset = pool.reset_prefix_cache

    @functools.wraps(reset)
    def watched_reset(*args: object, **kwargs: object) -> object:
        before()
        emptied = reset(*args, **kwargs)
        if emptied:
            after()
        return emptied

    pool.reset_prefix_cache = watched_reset


def keep_joint_lookup() -> None:
    """Have a scheduler with a connector look prefixes up in its own cache as one without does (0.26; others do anyway).

    With layers that have a recurrent state (Mamba, GDN) 0.26 takes the longest hit of any group of layers for computed,
    whatever the others have, so that a connector which answers "nothing" makes answers wrong. It does so where the
    scheduler's module finds one class behind this name, which it uses for nothing else.
    """
    scheduler: Any = importlib.import_module("vllm.v1.core.sched.scheduler")
    if hasattr(scheduler, "HybridKVCacheCoordinator"):
        scheduler.HybridKVCacheCoordinator = _Nobody


class _Nobody:
    """A class of which nothing is an instance."""


def prepare_cpu_worker() -> None:
    """On CPUs with AMX the worker dies of SIGILL when its first forward is tiny, unless AMX was initialised before."""
    start = getattr(torch.cpu, "_init_amx", None)
    if start is not None:
        start()


def weight_files(path: str, load_format: str) -> list[str]:
    """The files that vLLM's own loader would read weights from, of what lies at `path`; none if it would find none."""
    if Path(path).is_file():
        return [path]
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loader = DefaultModelLoader(LoadConfig(load_format=load_format))
    try:
        _, files, *_ = loader._prepare_weights(path, None, None, True, None)
    except (RuntimeError, ValueError):  # no such files, or another loader's format
        return []
    return list(files)


def attention_backends(vllm_config: Any, layers: Sequence[str]) -> str:
    """Names of the attention backends of these layers: equal page shapes of two backends need not mean equal bytes."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    found = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, layers)
    return ",".join(sorted({layer.get_attn_backend().get_name() for layer in found.values()}))
