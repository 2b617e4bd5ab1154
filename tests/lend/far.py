"""Far memory without a GPU: memory of the host that a lender of CPU engines takes for far, shared in the usual way."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest.mock import patch

import torch

from kvmarket.lend import segment
from kvmarket.lend.budget import Budget
from kvmarket.transport import HostMemory, ShmMemory


class FarBudget(Budget):
    """Memory that engines on CPUs take for far."""

    def far(self, kind: str) -> bool:
        return True


class _Host(HostMemory, frozen=True, tag="host"):
    @classmethod
    def allocate(cls, nbytes: int, device: torch.device) -> tuple[torch.Tensor, ShmMemory]:  # type: ignore[override]
        memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        return memory, ShmMemory.export([memory.untyped_storage()])


def on_cpus() -> AbstractContextManager[object]:
    """While it is entered, far memory is allocated without a GPU."""
    return patch.object(segment, "HostMemory", _Host)
