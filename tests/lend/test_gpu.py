"""``kvmarket lend --gpu``: memory of a GPU that is taken back is free for others, whoever has read it or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from kvmarket.lend.budget import Budget
from kvmarket.lend.lender import Lender
from tests.lend.lends import churn, lent
from tests.model_engine import BLOCK, ModelEngine, prompt, until

pytestmark = pytest.mark.gpu
SEGMENT = 64 << 20


@pytest.fixture
def lender(own_address: str) -> Iterator[Lender]:
    """A lender in this process, of two segments, whose `run` is a thread's."""
    found = Lender(own_address, [Budget(torch.device("cuda", 0), 2 * SEGMENT, SEGMENT)])
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    found.stop()
    thread.join()
    found.close()


def allocated() -> int:
    """Bytes of the GPU that this process has in use, and has not only cached."""
    return int(torch.cuda.memory_allocated(0))


@pytest.mark.parametrize("read", [True, False], ids=["read", "never read"])
def test_taken_back_it_is_free(own_address: str, lender: Lender, read: bool):
    computes, reads = ModelEngine(own_address, "cuda"), ModelEngine(own_address, "cuda")
    before = allocated()
    tokens = prompt(4 * BLOCK, 1)
    for _ in range(3):
        computes.publish(tokens, [0, 1, 2, 3])
        until(lambda: lent(reads, tokens))
        churn(computes)
        assert allocated() > before + SEGMENT // 2
        if read:
            assert reads.take(tokens, [5, 6, 7, 8]) == 4
            churn(reads)
        lender.pause()
        until(lambda: allocated() < before + SEGMENT // 2)
        lender.resume()
    computes.close()
    reads.close()
