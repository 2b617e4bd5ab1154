"""A lender in this process, for the blocks of model engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from kvmarket.lend import spaces
from kvmarket.lend.budget import Budget
from kvmarket.lend.lender import Lender
from kvmarket.lend.lending import Lending
from tests.lend.far import FarBudget, on_cpus
from tests.model_engine import BLOCK, ModelEngine, prompt, until

BLOCK_BYTES = 2 * 2 * 4 * 24 * 2  # of a model engine


class Lends(Lender):
    """A lender of `blocks` blocks in segments of `segment` blocks, whose `run` is a thread's.

    `far`: so many blocks of far memory besides.
    """

    def __init__(self, address: str, blocks: int, segment: int = 1 << 20, keep_free: int = 0, far: int = 0) -> None:
        self.budget = Budget(torch.device("cpu"), blocks * BLOCK_BYTES, segment * BLOCK_BYTES, keep_free)
        behind = [FarBudget(torch.device("cpu"), far * BLOCK_BYTES)] if far else []
        super().__init__(address, [self.budget, *behind])
        self._turning = threading.Lock()
        self._thread = threading.Thread(target=self.run)
        self._thread.start()

    def __len__(self) -> int:
        """Number of blocks that are kept, with those being copied."""
        return sum(map(len, self._lendings.values()))

    @property
    def lending(self) -> Lending:
        """What it does in the only space."""
        (lending,) = self._lendings.values()
        return lending

    @property
    def both(self) -> tuple[Lending, Lending]:
        """What it does in the only space with its memory, and with its far memory."""
        near, far = self._lendings.values()
        return near, far

    def keeps(self, blocks: int) -> None:
        """Wait until so many blocks are kept and offered."""
        until(lambda: len(self) == blocks and self.at_rest())

    def turn(self) -> bool:
        with self._turning:
            return super().turn()

    def at_rest(self) -> bool:
        """Whether nothing is done, and there is nothing to do."""
        with self._turning:
            return not any(
                lending._pulls or lending.tips._tips or lending._later for lending in self._lendings.values()
            )

    def end(self) -> None:
        """Stop, and leave."""
        self.stop()
        self._thread.join()
        self.close()


@contextmanager
def lending(address: str, blocks: int, segment: int = 1 << 20, keep_free: int = 0, far: int = 0) -> Iterator[Lends]:
    """A lender that has joined the space of the engines that are there."""
    with patch.object(spaces, "LOOK_SECONDS", 0.02), on_cpus():
        lender = Lends(address, blocks, segment, keep_free, far)
        try:
            until(lambda: len(lender._lendings) == len(lender._budgets))
            yield lender
        finally:
            lender.end()


def churn(engine: ModelEngine) -> None:
    """Overwrite all that the engine has."""
    engine.market.retire(range(engine.slots))
    for layer in engine.layers:
        layer.fill_(-1)


def lent(engine: ModelEngine, tokens: list[int]) -> bool:
    """Whether a match finds the lender's blocks: they are newer."""
    hit = engine.market.match(tokens)
    return hit.blocks > 0 and all(pool.lent for pool in hit.pools.values())


def engines_of(address: str, *models: str) -> list[ModelEngine]:
    return [ModelEngine(address, facts={"model": model}) for model in models]


def fill(engine: ModelEngine, *seeds: int) -> None:
    """Offer a prompt of four blocks for each seed, each in slots of its own."""
    for seed in seeds:
        tokens, slots = prompt(4 * BLOCK, seed), list(range(4 * seed, 4 * seed + 4))
        for block, slot in enumerate(slots):
            engine.write(slot, tokens[: (block + 1) * BLOCK])
        engine.market.publish(tokens, slots)


def fill_segments(lender: Lends, engine: ModelEngine, *seeds: int) -> list[list[int]]:
    """Have the lender keep a prompt of four blocks for each seed, one after another, and the engine lose them."""
    prompts = [prompt(4 * BLOCK, seed) for seed in seeds]
    for number, tokens in enumerate(prompts):
        engine.publish(tokens, [4 * number + block for block in range(4)])
        lender.keeps(4 * number + 4)
    churn(engine)
    return prompts


def segments(lender: Lends) -> list[int]:
    """The number of segments of each space, in the order in which they were joined."""
    return [lending.segments for lending in lender._lendings.values()]
