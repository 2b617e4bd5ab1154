"""An engine of a history: an owner of slots, with a real control half."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvmarket import PagedCache
from kvmarket.fingerprint import Fingerprint
from kvmarket.market.control import ControlHalf
from kvmarket.market.offer import Stage
from kvmarket.market.own_pool import OwnPool
from kvmarket.transport import export

if TYPE_CHECKING:
    from tests.histories.node import Node

BLOCK, SLOTS, VOCABULARY, DEPTH = 1, 7, 2, 4
TENANTS = ("", "t")
FINGERPRINT = Fingerprint.of(model="histories")


def _stage() -> Stage:
    cache = PagedCache([torch.zeros(SLOTS, 1, dtype=torch.uint8)], block_size=BLOCK)
    return Stage(cache.layout, (export(cache.storages()),))


Held = dict[int, tuple[str, tuple[int, ...]]]  # tenant and prefix by slot, while it may be offered
STAGE: list[Stage] = []  # made once: nothing reads the memory


class Engine:
    """An owner: what each of its slots holds, and the control half that offers it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        if not STAGE:
            STAGE.append(_stage())
        self.holds: Held = {}
        self.others: list[tuple[OwnPool, Held]] = []  # further pools, as a lender has them
        self.promises: list[int] = []
        self.control = ControlHalf(STAGE, FINGERPRINT, "", "/nowhere", finds_own=node.chance.random() < 0.3)
        self.client: Any = self.control._client

    def publish(self, tenant: str, tokens: tuple[int, ...], last: int | None = None) -> None:
        """Compute the missing blocks of a prompt into random slots; offer all its blocks, or all from a random one on.

        The last block goes into slot `last`, if given; else another pool may be taken than the cache's.
        """
        pool, holds = self.control.pool, self.holds
        if last is None and self.others:
            pool, holds = self.node.chance.choice([(pool, holds), *self.others])
        where = {held: slot for slot, held in holds.items()}
        slots, used = [], set()
        for end in range(1, len(tokens) + 1):
            slot = where.get((tenant, tokens[:end]))
            if slot is None or slot in used:
                spare = [slot for slot in range(SLOTS) if slot not in used and slot != last]
                slot = last if last is not None and end == len(tokens) else self.node.chance.choice(spare)
                self._retire(pool, holds, [slot])
                holds[slot] = (tenant, tokens[:end])
            used.add(slot)
            slots.append(slot)
        first = self.node.chance.choice((0, 0, 0, self.node.chance.randrange(len(slots))))
        ids = np.array(slots[first:])
        generations = pool.generations.read(ids)
        self.control.offer_from(pool, np.array(tokens, np.int32), ids, generations, tenant=tenant, first=first)

    def retire(self, slots: list[int]) -> None:
        """Retire these slots of the cache: they will hold something else."""
        self._retire(self.control.pool, self.holds, slots)

    def _retire(self, pool: OwnPool, holds: Held, slots: list[int]) -> None:
        self.control.retire_from(pool, np.array(slots))
        for slot in slots:
            holds.pop(slot, None)

    def add_pool(self) -> None:
        """Add a pool, up to a few."""
        if len(self.others) < 3:
            self.others.append((OwnPool(STAGE, lent=True, far=len(self.others) == 1), {}))
            self.control.add_pool(self.others[-1][0])

    def drop_pool(self) -> None:
        """Take a pool back."""
        if self.others:
            self.control.drop_pool(self.others.pop(self.node.chance.randrange(len(self.others)))[0])

    def fail_closed(self) -> None:
        """Kill all offers; the slots keep their right content, which may be offered again."""
        self.control.fail_closed("a test")

    def offered(self) -> set[tuple[str, tuple[int, ...]]]:
        """All offered blocks, as (tenant, prefix)."""
        pools = (self.control.pool, self.holds), *self.others
        with self.control._lock:
            return {holds[slot] for pool, holds in pools for slot in pool.ledger.slots().tolist()}

    def held(self) -> dict[str, Held]:
        """What each pool holds, by its id."""
        return {pool.id: holds for pool, holds in ((self.control.pool, self.holds), *self.others)}

    def pump(self, rounds: int = 1) -> None:
        """Do a little of the work of the client's watching thread."""
        for _ in range(rounds):
            if self.client._connection.socket.closed:
                self.client._rejoin()
            with self.client._lock:
                _, gone = self.client._connection.drain(time.perf_counter())
            if gone:
                self.control._forget(gone)
            self.control._go_on()
            replica = self.client._replica
            if replica.space.collecting:
                replica.space.collect()
