"""One name for weights that several engines hold together: experts that are spread over data-parallel ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import xxhash

_KEY = "kvmarket/weights"
_PATIENCE = timedelta(seconds=60)  # for the slowest rank: all ranks load at the same time


def name_of_group(own: str, vllm_config: Any) -> str:
    """The name of all weights that a step of this rank computes with; `own` names the weights of this rank.

    It is `own`, unless experts may be spread over data-parallel ranks: then a step computes with the weights of all
    ranks. These exchange their names through torch.distributed's default store. Raises what the store raises if a
    rank sets no name within 60 s.
    """
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size == 1 or not getattr(parallel, "is_moe_model", True):
        return own
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return own
    store = distributed.distributed_c10d._get_default_store()
    return exchanged(own, store, distributed.get_rank(), distributed.get_world_size())


def exchanged(own: str, store: Any, rank: int, ranks: int) -> str:
    """Set `own` in the store, wait for the names of all ranks, and hash these in rank order."""
    keys = [f"{_KEY}/{number}" for number in range(ranks)]
    store.set(keys[rank], own)
    store.wait(keys, _PATIENCE)
    names = [store.get(key).decode() for key in keys]
    return xxhash.xxh3_128_hexdigest(repr(names).encode())
