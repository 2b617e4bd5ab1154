"""The prompts that all engines of a run know, in families with shared prefixes, and the bytes of every block."""

from __future__ import annotations

import random

import numpy as np
import torch

from tests.model_engine import BLOCK, slot_bytes_of

FAMILIES, BRANCHES, LEAVES = 10, 3, 2


class World:
    """Prompts of some 700 blocks, made from a seed: the same in every process. To make it costs some 20 ms."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.prompts: list[np.ndarray] = []  # int32 tokens
        self.ids: list[np.ndarray] = []  # a number for each block of a prompt; equal for equal prefixes
        blocks: list[np.ndarray] = []

        def grow(tokens: list[int], ids: list[int], least: int, most: int) -> tuple[list[int], list[int]]:
            for _ in range(chance.randint(least, most)):
                tokens = tokens + [chance.randrange(2**31) for _ in range(BLOCK)]
                ids = [*ids, len(blocks)]
                blocks.append(slot_bytes_of(tokens))
            return tokens, ids

        for _ in range(FAMILIES):
            stem = grow([], [], 3, 10)
            for _ in range(BRANCHES):
                branch = grow(*stem, 2, 8)
                for _ in range(LEAVES):
                    tokens, ids = grow(*branch, 1, 8)
                    self.prompts.append(np.array(tokens, np.int32))
                    self.ids.append(np.array(ids, np.int64))
        self._layers = [torch.from_numpy(layer.copy()) for layer in np.stack(blocks, axis=1)]
        self.blocks = len(blocks)

    def bytes_of(self, ids: np.ndarray) -> list[torch.Tensor]:
        """For each layer the bytes of these blocks, (blocks, 2, BLOCK, dim) int16, on the host."""
        index = torch.from_numpy(ids)
        return [layer.index_select(0, index) for layer in self._layers]
