"""Ranks that hold one model together have one name for it, which says what each of them holds."""

from __future__ import annotations

import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_hook.identity import group
from vllm_hook.identity.group import exchanged, name_of_group


def together(*names: str) -> set[str]:
    """What ranks that hold these weights call them."""
    store, found = torch.distributed.HashStore(), []
    ranks = [
        threading.Thread(target=lambda rank=rank: found.append(exchanged(names[rank], store, rank, len(names))))
        for rank in range(len(names))
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(found) == len(names)
    return set(found)


def test_all_ranks_give_one_name_to_what_they_hold_together():
    (one,), (same,) = together("a", "b", "c"), together("a", "b", "c")
    assert one == same
    assert len({one, *together("a", "b", "d"), *together("b", "a", "c"), *together("a", "b")}) == 4


def test_a_rank_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group, "_PATIENCE", timedelta(seconds=0.2))
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)time(d )?\s?out"):
        exchanged("a", torch.distributed.HashStore(), 0, 2)


def config(data_parallel_size: int, **more: Any) -> Any:
    return SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=data_parallel_size, **more))


def test_only_experts_are_spread_over_data_parallel_ranks(monkeypatch: pytest.MonkeyPatch):
    store = torch.distributed.HashStore()
    store.set("kvmarket/weights/1", "b")
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    assert name_of_group("a", config(1, is_moe_model=True)) == "a"
    assert name_of_group("a", config(2, is_moe_model=False)) == "a"
    assert {name_of_group("a", config(2, is_moe_model=True))} == together("a", "b")
