"""A chaos lender: keeps blocks of the engines in little memory, near and far, and takes segments back at random."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import torch

from kvmarket.lend import spaces
from kvmarket.lend.budget import Budget
from kvmarket.lend.lender import COPY_SECONDS, TURN_SECONDS, Lender
from tests.chaos.owner import SLOT_BYTES, Life
from tests.chaos.tally import Tally, write_counters
from tests.lend.far import FarBudget, on_cpus

SLOTS, FAR_SLOTS, SEGMENT_SLOTS = 96, 192, 32  # of some 700 different blocks
BEAT_SECONDS = 0.5
LOOK_SECONDS = 0.2  # a shorter run needs the lender sooner
TAKEN_BACK, PAUSED, RESUMED = 0.003, 0.0005, 0.02  # chances, each turn


class ChaosLender(Lender):
    """A lender whose exceptions end it, and which writes its counters and steps for the driver."""

    def __init__(self, life: Life) -> None:
        device = torch.device(life.device if life.device == "cpu" else f"{life.device}:0")
        near = Budget(device, SLOTS * SLOT_BYTES, SEGMENT_SLOTS * SLOT_BYTES)
        far = Budget(torch.device("cpu"), FAR_SLOTS * SLOT_BYTES, SEGMENT_SLOTS * SLOT_BYTES, gpu=device)
        if life.device == "cpu":
            on_cpus().__enter__()
            far = FarBudget(device, FAR_SLOTS * SLOT_BYTES, SEGMENT_SLOTS * SLOT_BYTES)
        spaces.LOOK_SECONDS = LOOK_SECONDS
        super().__init__(life.address, [near, far])
        self.life, self.tally = life, Tally(Path(life.home) / f"{life.name}.tally")
        self._random = random.Random(life.seed)

    def run(self) -> None:
        """Take turns until the driver asks for the end or has ended, then leave."""
        driver, beat = multiprocessing.parent_process(), 0.0
        while not self.tally.stopping:
            busy = self.turn()
            self._take_back()
            self.tally.add("steps")
            self.tally.add("full", all(budget.spent for budget in self._budgets))
            if time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                write_counters(self.life.home, self.life.name)
                if driver is not None and not driver.is_alive():
                    break
            time.sleep(COPY_SECONDS if busy else TURN_SECONDS)
        self.close()
        write_counters(self.life.home, self.life.name)

    def _take_back(self) -> None:
        """Now and then give a segment back, or all memory for a while."""
        budget = self._random.choice(self._budgets)
        if (lendings := self._of(budget)) and self._random.random() < TAKEN_BACK:
            self._shrink(budget, lendings)
        if self._random.random() < (RESUMED if self._paused else PAUSED):
            (self.resume if self._paused else self.pause)()
