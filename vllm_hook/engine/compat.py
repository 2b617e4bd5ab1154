"""What differs between the supported versions of vLLM: found by feature tests, but for `too_old`."""

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
    """The version of vLLM, with a remark whether the hook was tested with it."""
    found = version()
    tested = ".".join(found.split(".")[:2]) in TESTED
    return f"{found} (tested)" if tested else f"{found} (not tested: tested are {', '.join(TESTED)})"


def too_old() -> str:
    """Why this version of vLLM is not supported; empty when it is."""
    numbers = re.match(r"(\d+)\.(\d+)", version())
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= (0, 26):
        return ""
    return (
        "up to 0.25 vLLM's MultiConnector shows a connector no pages that another one fills, so their old offers would "
        "stand; use vLLM 0.26 or newer"
    )


def hit_source() -> Any:
    """The value in vLLM's metrics for tokens that came from a peer (0.32+); None where vLLM has none."""
    try:
        module = importlib.import_module("vllm.v1.metrics.cache_hit_source")
    except ImportError:
        return None
    return getattr(module.CacheHitSource, "P2P", None)


def defers_block_free() -> bool:
    """Whether vLLM's scheduler reuses a freed page only when no step in flight can write it any more.

    Asked of the code, because a build without a version number ("dev") passes `too_old`.
    """
    from vllm.v1.core.sched.scheduler import Scheduler

    return hasattr(Scheduler, "_drain_deferred_frees")


def transfer_config_of_engine() -> Any:
    """The engine's ``kv_transfer_config``; under MultiConnector a connector itself is given only its own entry.

    None where vLLM has set no current configuration: it has one where a worker makes its connector.
    """
    config = importlib.import_module("vllm.config").get_current_vllm_config_or_none()
    return config.kv_transfer_config if config is not None else None


def tells_stages_apart() -> bool:
    """Whether vLLM tells a connector the pipeline stage of each worker; a build without a number may not."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    return hasattr(KVConnectorBase_V1, "set_xfer_handshake_metadata_pp_aware")


def block_outermost_layout() -> str | None:
    """The name of the KV layout in which a block of all layers is one range of memory (0.30+); None before."""
    try:
        module = importlib.import_module("vllm.v1.kv_cache_layout")
    except ImportError:
        return None
    name = "BLHNC"
    return name if hasattr(module.KVCacheLayout, name) else None


def can_watch(pool: Any) -> bool:
    """Whether vLLM's block pool can report that it hands a page out again (0.30+)."""
    return hasattr(pool, "unpin_blocks")


def watch_reuse(pool: Any, slots: Sequence[int], on_reuse: Callable[[Any], None]) -> None:
    """Have `on_reuse` called once for each of these pages when the pool hands it out, from within ``schedule()``.

    Pages that are not in use are skipped: to touch and unpin them would change the order of eviction. A page has one
    callback; a callback of somebody else's is kept, and a pool without callbacks is left alone. So correctness must
    not depend on it.
    """
    if not can_watch(pool):
        return
    taken = getattr(pool, "_reuse_watchers", {})
    blocks = [pool.blocks[slot] for slot in slots if taken.get(slot, on_reuse) == on_reuse]
    blocks = [block for block in blocks if block.ref_cnt > 0 and not block.is_null]
    pool.touch(blocks)
    pool.unpin_blocks(blocks, on_reuse)


def watch_reset(pool: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Have `before` called before every reset of the pool's prefix cache, and `after` once the cache is empty.

    Wraps the method of this pool: ``reset_prefix_cache()`` without ``reset_connector`` calls no connector.
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
    """Make a scheduler with a connector look up its own prefix cache as one without does; needed for vLLM 0.26 only.

    For hybrid models with recurrent state (Mamba, GDN) 0.26 takes the longest hit of any group as computed, although
    the other groups may have less; outputs are then wrong even if the connector has no hit. The scheduler does that
    if its coordinator is a ``HybridKVCacheCoordinator``; it uses this name for nothing else, so the name is replaced.
    """
    scheduler: Any = importlib.import_module("vllm.v1.core.sched.scheduler")
    if hasattr(scheduler, "HybridKVCacheCoordinator"):
        scheduler.HybridKVCacheCoordinator = _NoCoordinator


class _NoCoordinator:
    """A class without instances."""


def prepare_cpu_worker() -> None:
    """Initialise AMX where the CPU has it: without it a tiny first forward kills vLLM's worker with SIGILL."""
    start = getattr(torch.cpu, "_init_amx", None)
    if start is not None:
        start()


def weight_files(path: str, load_format: str) -> list[str]:
    """The files at `path` from which vLLM's default loader would read weights; empty if it would find none."""
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
    """Names of the attention backends of these layers: equal shapes of pages do not imply equal bytes."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    found = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, layers)
    return ",".join(sorted({layer.get_attn_backend().get_name() for layer in found.values()}))
