"""The owner's side of a chaos engine: what each slot holds, and the order of retire, write, publish."""

from __future__ import annotations

import random
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kvmarket.errors import SlotError
from tests.chaos.tally import Tally
from tests.chaos.world import World
from tests.model_engine import BLOCK, ModelEngine

SLOTS, STAGED_SLOTS, SLOT_BYTES = 128, 24, 2 * 2 * BLOCK * 24 * 2


class Life(NamedTuple):
    """The settings of one incarnation of an engine or a lender; what it does is a function of `seed` and `world`."""

    address: str
    home: str  # folder of its files: name.tally, name.log, name.counters
    name: str
    seed: int
    world: int  # seed of the prompts
    device: str = "cpu"
    rejoins: bool = True  # whether it leaves and joins again now and then
    fault: str = ""  # see faults.py
    loss: float = 0.0  # see crowd.py
    lends: bool = False  # see lender.py


class Owner(ModelEngine):
    """A cache, a market, and what every slot of the cache holds."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.address, life.device, SLOTS, staging_bytes=STAGED_SLOTS * SLOT_BYTES)
        self.life, self.world = life, World(life.world)
        self.tally = Tally(Path(life.home) / f"{life.name}.tally")
        self.chance = random.Random()
        self.holds_block = np.full(SLOTS, -1, np.int64)  # number of the block in each slot; -1: none
        self.in_flight = np.zeros(SLOTS, np.bool_)
        self.runs: deque[tuple[int, np.ndarray]] = deque(maxlen=12)  # recent prompts, and the slots of their blocks

    def _publish(self, prompt: int, slots: np.ndarray) -> None:
        """Offer blocks that are in these slots already: the market must accept that."""
        tokens = self.world.prompts[prompt][: len(slots) * BLOCK]
        try:
            offered = self.market.publish(tokens, slots.tolist())
        except SlotError as error:
            if not self.tally["refused"]:
                print(f"REFUSED in step {self.tally['steps']} of seed {self.life.seed}: {error}", file=sys.stderr)
            self.tally.add("refused")
            self.market.retire(slots.tolist())
            offered = self.market.publish(tokens, slots.tolist())
        assert offered == len(slots), f"{offered} of {len(slots)} blocks offered"
        self._count_published(offered)
        self.runs.append((prompt, slots))

    def _count_published(self, blocks: int) -> None:
        self.tally.add("publishes")
        self.tally.add("published", blocks)

    def _compute(self, slots: np.ndarray, ids: np.ndarray) -> None:
        """Retire the slots, then write these blocks into them."""
        self.market.retire(slots.tolist())
        self._write(slots, ids)
        self.tally.add("overwrites")

    def _write(self, slots: np.ndarray, ids: np.ndarray) -> None:
        index = torch.from_numpy(slots).to(self.device)
        for layer, data in zip(self.layers, self.world.bytes_of(ids), strict=True):
            layer.index_copy_(0, index, data.to(self.device))
        self.holds_block[slots] = ids

    def _resting(self, count: int, but: np.ndarray | None = None) -> np.ndarray:
        """At most `count` random slots, without those of `but` and the destinations of fetches in flight."""
        free = ~self.in_flight
        if but is not None:
            free[but] = False
        slots = np.flatnonzero(free).tolist()
        return np.array(self.chance.sample(slots, min(count, len(slots))), np.int64)

    def _anything(self, count: int) -> np.ndarray:
        return np.array(self.chance.choices(range(self.world.blocks), k=count), np.int64)

    def _run(self) -> tuple[int, np.ndarray]:
        """A prompt and the slots that still hold its first blocks; no slots if there are none."""
        if not self.runs:
            return 0, np.empty(0, np.int64)
        prompt, slots = self.chance.choice(self.runs)
        intact = (self.holds_block[slots] == self.world.ids[prompt][: len(slots)]) & ~self.in_flight[slots]
        return prompt, slots[: int(np.logical_and.accumulate(intact).sum())]
