"""What an engine has on offer from one of its pools: so that nothing is offered twice, and all can be offered again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from kvmarket.errors import SlotError
from kvmarket.pool.generations import leading
from kvmarket.pool.slots import Slots
from kvmarket.registry.messages import joined
from kvmarket.registry.node import OFFERS_PER_BLOCK
from kvmarket.registry.tokens import Int32s
from kvmarket.registry.trie import PrefixTrie


class Entry(msgspec.Struct, frozen=True):
    """Blocks `first` ... of a prefix that are on offer: what it takes to offer them again."""

    tenant: str
    tokens: Int32s
    first: int
    slots: tuple[int, ...]
    generations: tuple[int, ...]
    checksums: bytes = b""  # 8 a block, or none


class Ledger:
    """Slots on offer with their generation, and the prefixes they stand for, one trie per tenant. Not thread-safe."""

    def __init__(self, block_size: int, slots: int) -> None:
        """An empty ledger for blocks of `block_size` tokens in `slots` slots."""
        self._block_size = block_size
        self._held = np.zeros(slots, np.bool_)  # which slots are on offer: lets a retirement of others cost nothing
        self._tries: dict[str, PrefixTrie] = {}
        self._standing: dict[int, tuple[int, str, bytes]] = {}  # slot -> generation, tenant, checksum

    def __len__(self) -> int:
        """How many slots are on offer."""
        return len(self._standing)

    def news(self, tenant: str, tokens: Int32s, first: int, slots: Sequence[int], generations: Sequence[int]) -> int:
        """How many of these blocks, counted from the front, are on offer already exactly so.

        Raises SlotError if one of the slots is on offer at this very generation for other tokens: its owner overwrote
        it without retiring it. Costs one match of the prefix.
        """
        same = [self._standing.get(slot, ())[:2] == (g, tenant) for slot, g in zip(slots, generations, strict=True)]
        trie = self._tries.get(tenant)
        found = trie.match_all(tokens)[first:] if trie is not None and any(same) else []
        known = [
            i < len(found) and (slot in found[i] or len(found[i]) >= OFFERS_PER_BLOCK) for i, slot in enumerate(slots)
        ]
        for slot, generation, here in zip(slots, generations, known, strict=True):
            if not here and slot in self._standing and self._standing[slot][0] == generation:
                raise SlotError(
                    f"block id {slot} is still on offer for other tokens; retire([{slot}]) before it is overwritten"
                )
        return leading(np.array(known, np.bool_))

    def add(self, entry: Entry) -> None:
        """Note that the blocks of `entry` are on offer now; older offers of its slots are forgotten."""
        self.drop(np.array(entry.slots, np.int64))
        trie = self._tries.setdefault(entry.tenant, PrefixTrie(self._block_size))
        trie.insert(entry.tokens, entry.slots, first=entry.first)
        for index, (slot, generation) in enumerate(zip(entry.slots, entry.generations, strict=True)):
            self._standing[slot] = (generation, entry.tenant, entry.checksums[8 * index : 8 * index + 8])
        self._held[list(entry.slots)] = True

    def drop(self, slots: Slots) -> list[int]:
        """Forget the offers of these slots; the ones that had one. Costs some us, and the removal of those."""
        dropped: dict[str, list[int]] = {}
        for slot in slots[self._held[slots]].tolist():
            dropped.setdefault(self._standing.pop(slot)[1], []).append(slot)
        self._held[slots] = False
        for tenant, gone in dropped.items():
            self._tries[tenant].remove(gone)
            if not self._tries[tenant]:
                del self._tries[tenant]
        return [slot for gone in dropped.values() for slot in gone]

    def slots(self) -> Slots:
        """The slots on offer."""
        return np.flatnonzero(self._held)

    def clear(self) -> None:
        """Forget everything."""
        self._tries.clear()
        self._standing.clear()
        self._held[:] = False

    def entries(self) -> Iterator[Entry]:
        """Everything on offer, prefixes before what follows them. Do not change the ledger meanwhile."""
        for tenant, trie in self._tries.items():
            for tokens, offers in trie.items():
                slots = tuple(newest for newest, *_ in offers)
                first = len(tokens) // self._block_size - len(slots)
                generations, _, checksums = zip(*(self._standing[slot] for slot in slots), strict=True)
                yield Entry(tenant, tokens, first, slots, generations, joined(checksums))
