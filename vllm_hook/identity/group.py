"""The name of weights that several engines hold together: experts that are spread over data-parallel ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import xxhash

_KEY = "kvmarket/weights"
_PATIENCE = timedelta(seconds=60)  # all ranks load at a time


def name_of_group(own: str, vllm_config: Any) -> str:
    """The name of the weights of all ranks that compute one step together, of which this rank's is `own`.

    That is `own` itself, unless the model has experts that are spread over data-parallel ranks: then what a rank
    computes depends on the weights of all. They tell each other through the store that they met at. Raises what the
    store raises if another rank says nothing.
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
    """Tell `own` to all others by this store, and make one name of what all have told, by rank."""
    keys = [f"{_KEY}/{number}" for number in range(ranks)]
    store.set(keys[rank], own)
    store.wait(keys, _PATIENCE)
    names = [store.get(key).decode() for key in keys]
    return xxhash.xxh3_128_hexdigest(repr(names).encode())
