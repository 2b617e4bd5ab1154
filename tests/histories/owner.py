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
from kvmarket.transport import export

if TYPE_CHECKING:
    from tests.histories.node import Node

BLOCK, SLOTS, VOCABULARY, DEPTH = 1, 7, 2, 4
TENANTS = ("", "t")
FINGERPRINT = Fingerprint.of(model="histories")


def _stage() -> Stage:
    cache = PagedCache([torch.zeros(SLOTS, 1, dtype=torch.uint8)], block_size=BLOCK)
    return Stage(cache.layout, (export(cache.storages()),))


STAGE: list[Stage] = []  # made once: nothing reads the memory


class Engine:
    """An owner: what each of its slots holds, and the control half that offers it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        if not STAGE:
            STAGE.append(_stage())
        self.holds: dict[int, tuple[str, tuple[int, ...]]] = {}  # tenant and prefix by slot, while it may be offered
        self.promises: list[int] = []
        self.control = ControlHalf(STAGE, FINGERPRINT, "", "/nowhere", finds_own=node.chance.random() < 0.3)
        self.client: Any = self.control._client

    def publish(self, tenant: str, tokens: tuple[int, ...], last: int | None = None) -> None:
        """Compute the missing blocks of a prompt into random slots; offer all its blocks, or all from a random one on.

        The last block goes into slot `last`, if given.
        """
        where = {held: slot for slot, held in self.holds.items()}
        slots, used = [], set()
        for end in range(1, len(tokens) + 1):
            slot = where.get((tenant, tokens[:end]))
            if slot is None or slot in used:
                spare = [slot for slot in range(SLOTS) if slot not in used and slot != last]
                slot = last if last is not None and end == len(tokens) else self.node.chance.choice(spare)
                self.retire([slot])
                self.holds[slot] = (tenant, tokens[:end])
            used.add(slot)
            slots.append(slot)
        first = self.node.chance.choice((0, 0, 0, self.node.chance.randrange(len(slots))))
        generations = self.control.generations(slots[first:])
        self.control.offer(np.array(tokens, np.int32), slots[first:], generations, tenant=tenant, first=first)

    def retire(self, slots: list[int]) -> None:
        """Retire these slots: they will hold something else."""
        self.control.retire(slots)
        for slot in slots:
            self.holds.pop(slot, None)

    def fail_closed(self) -> None:
        """Kill all offers; the slots keep their right content, which may be offered again."""
        self.control.fail_closed("a test")

    def offered(self) -> set[tuple[str, tuple[int, ...]]]:
        """All offered blocks, as (tenant, prefix)."""
        with self.control._lock:
            slots = self.control.pool.ledger.slots().tolist()
        return {self.holds[slot] for slot in slots}

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
