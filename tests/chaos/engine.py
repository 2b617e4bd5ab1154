"""One chaos engine: random operations in the order that an owner must keep, and a check of every valid byte."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import deque
from typing import NamedTuple

import numpy as np
import torch

from kvmarket import Hit
from kvmarket.market.fetch import Fetch
from tests.chaos.owner import STAGED_SLOTS, Life, Owner
from tests.chaos.tally import write_counters
from tests.model_engine import BLOCK

IN_FLIGHT = 4
BEAT_SECONDS = 0.5  # between two writes of the counters, and two checks that the driver lives


class Flight(NamedTuple):
    """A fetch in flight: the blocks asked for, and their slots."""

    moved: Fetch
    prompt: int
    first: int
    slots: np.ndarray


class Engine(Owner):
    """An owner that also fetches; it keeps some hits for later, and draws each next operation at random."""

    def __init__(self, life: Life) -> None:
        super().__init__(life)
        self.joined = True
        self.flights: deque[Flight] = deque()
        self.hits: deque[tuple[int, Hit]] = deque(maxlen=6)  # kept for later fetches, when they may be stale
        self._kinds, self._weights = zip(*self.operations().items(), strict=True)

    def operations(self) -> dict[str, int]:
        """The name of each operation and its weight in the draw."""
        return {
            "fetch_matched": 40,
            "fetch_remembered": 15,
            "match": 4,
            "publish_new": 10,
            "publish_staged": 5,
            "publish_more": 5,
            "publish_again": 4,
            "retire": 4,
            "overwrite": 3,
            "settle_one": 10,
        }

    def run(self) -> None:
        """Step until the driver asks for the end or has ended, then leave the market."""
        driver, beat, step = multiprocessing.parent_process(), time.monotonic(), 0
        while not self.tally.stopping:
            # each step has a random generator of its own, so that the length of a hit does not change later steps
            self.chance.seed(self.life.seed << 32 | step)
            self.step()
            self.tally.add("steps")
            step += 1
            if time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                write_counters(self.life.home, self.life.name)
                if driver is not None and not driver.is_alive():
                    break
        self.settle_all()
        self.close()
        write_counters(self.life.home, self.life.name)

    def step(self) -> None:
        """One random operation."""
        if self.life.rejoins and self.chance.random() < 0.0005:
            self.rejoin()
        getattr(self, self.chance.choices(self._kinds, self._weights)[0])()

    def fetch_matched(self) -> None:
        prompt, hit = self.match()
        self._fetch(prompt, hit)

    def fetch_remembered(self) -> None:
        if self.hits:
            self._fetch(*self.chance.choice(self.hits))

    def match(self) -> tuple[int, Hit]:
        prompt = self.chance.randrange(len(self.world.prompts))
        tokens = self.world.prompts[prompt]
        hit = self.market.match(tokens if self.chance.random() < 0.9 else tokens.tolist())
        assert hit.tokens == hit.blocks * BLOCK <= len(tokens), f"a hit of {hit.blocks} blocks, {hit.tokens} tokens"
        self.tally.add("matches")
        if hit.blocks:
            self.tally.add("hits")
            self.hits.append((prompt, hit))
        return prompt, hit

    def publish_new(self) -> None:
        """Compute blocks of a prompt into slots that held something else, and publish them."""
        prompt = self.chance.randrange(len(self.world.prompts))
        depth = self.chance.randint(1, len(self.world.ids[prompt]))
        slots = self._resting(depth)
        self._compute(slots, self.world.ids[prompt][: len(slots)])
        self._publish(prompt, slots)

    def publish_staged(self) -> None:
        """Compute and publish through the staging pool; the slots are free again at once."""
        prompt = self.chance.randrange(len(self.world.prompts))
        slots = self._resting(self.chance.randint(1, len(self.world.ids[prompt])))
        self._compute(slots, self.world.ids[prompt][: len(slots)])
        tokens = self.world.prompts[prompt][: len(slots) * BLOCK]
        offered = self.market.publish(tokens, slots.tolist(), staged=True)
        assert offered == min(len(slots), STAGED_SLOTS), f"{offered} of {len(slots)} blocks staged"
        self._count_published(offered)
        if self.chance.random() < 0.5:
            self._write(slots, self._anything(len(slots)))
        else:
            self.runs.append((prompt, slots))

    def publish_more(self) -> None:
        """Compute and publish further blocks of a prompt whose first blocks are here, as a conversation does."""
        prompt, slots = self._run()
        more = self.chance.randint(1, 3)
        new = self._resting(min(more, len(self.world.ids[prompt]) - len(slots)), but=slots)
        if len(slots) and len(new):
            self._compute(new, self.world.ids[prompt][len(slots) : len(slots) + len(new)])
            self._publish(prompt, np.concatenate([slots, new]))

    def publish_again(self) -> None:
        """Publish blocks that are here already, offered or not."""
        prompt, slots = self._run()
        if len(slots):
            self._publish(prompt, slots)

    def retire(self) -> None:
        """Retire slots without overwriting them."""
        self.market.retire(self._resting(self.chance.randint(1, 12)).tolist())
        self.tally.add("retires")

    def overwrite(self) -> None:
        """Write other blocks into slots, and publish nothing."""
        slots = self._resting(self.chance.randint(1, 24))
        self._compute(slots, self._anything(len(slots)))
        self.holds_block[slots] = -1

    def settle_one(self) -> None:
        """Poll the oldest fetch, or wait for it."""
        if self.flights and (self.flights[0].moved.done() or self.chance.random() < 0.3):
            self._settle(self.flights.popleft())

    def settle_all(self) -> None:
        while self.flights:
            self._settle(self.flights.popleft())

    def rejoin(self) -> None:
        """Leave the market, perhaps with fetches in flight; join again with the same cache or a new one."""
        late = self.chance.random() < 0.5
        if not late:
            self.settle_all()
        self.close()
        self.joined = False
        self.settle_all()
        self.hits.clear()
        if self.chance.random() < 0.5:
            self.allocate()
            self.holds_block[:] = -1
            self.runs.clear()
        self.join()
        self.joined = True
        self.tally.add("rejoins")

    def _fetch(self, prompt: int, hit: Hit) -> None:
        """Fetch a part of a hit or all of it; wait at once, or leave the fetch in flight."""
        first = self.chance.randrange(hit.blocks) if hit.blocks and self.chance.random() < 0.3 else 0
        part = self.chance.random() < 0.3
        count = self.chance.randint(0, hit.blocks - first) if part else hit.blocks - first
        slots = self._resting(count)
        if self.chance.random() < 0.5:  # right bytes from before must not count as fetched
            self._compute(slots, self._anything(len(slots)))
        self.holds_block[slots] = -1
        flight = Flight(self.market.fetch(hit, slots.tolist(), first), prompt, first, slots)
        self.tally.add("fetches")
        self.tally.add("asked", len(slots))
        if self.chance.random() < 0.5:
            self._settle(flight)
            return
        self.in_flight[slots] = True
        self.flights.append(flight)
        if len(self.flights) > IN_FLIGHT:
            self._settle(self.flights.popleft())

    def _settle(self, flight: Flight) -> None:
        """Wait for a fetch, and check every byte of its valid blocks before anything else happens."""
        leading = flight.moved.wait()
        valid = flight.moved.valid
        ids = self.world.ids[flight.prompt][flight.first : flight.first + len(flight.slots)]
        self._check(flight, valid, ids)
        assert len(valid) == len(flight.slots), f"{len(valid)} flags for {len(flight.slots)} blocks"
        assert valid[:leading].all(), f"{leading} leading blocks of {valid}"
        self.holds_block[flight.slots[valid]] = ids[valid]
        self.in_flight[flight.slots] = False
        if flight.first == 0 and leading:
            self.runs.append((flight.prompt, flight.slots[:leading]))
            if self.joined and self.chance.random() < 0.4:
                self._publish(flight.prompt, flight.slots[:leading])

    def _check(self, flight: Flight, valid: np.ndarray, ids: np.ndarray) -> None:
        slots, ids = flight.slots[valid], ids[valid]
        index = torch.from_numpy(slots).to(self.device)
        have = [layer.index_select(0, index).cpu() for layer in self.layers]
        self.tally.add("verified", len(ids))
        bad = np.zeros(len(ids), np.bool_)
        for found, right in zip(have, self.world.bytes_of(ids), strict=True):
            if not torch.equal(found, right):
                bad |= (found != right).flatten(1).any(1).numpy()
        if bad.any():
            self.tally.add("wrong", int(bad.sum()))
            step, blocks = self.tally["steps"], np.flatnonzero(valid)[bad] + flight.first
            where = f"blocks {blocks.tolist()} of prompt {flight.prompt} in slots {slots[bad].tolist()}"
            print(f"WRONG BYTES in step {step} of seed {self.life.seed}: {where}", file=sys.stderr, flush=True)
