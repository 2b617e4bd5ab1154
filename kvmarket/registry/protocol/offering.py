"""Offers of consecutive blocks of one prefix, as arrays: the checked form of `OfferBlocks` in messages.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmarket.errors import MessageError
from kvmarket.registry.protocol.messages import Before, OfferBlocks
from kvmarket.registry.trie.tokens import Int32s, Int64s
from kvmarket.support.flags import leading

UInt64s: TypeAlias = NDArray[np.uint64]
Number = TypeVar("Number", np.int32, np.int64, np.uint64)


class Offering(NamedTuple):
    """Blocks `first` ... of the prefix `tokens` lie in `slots` of `pool`, at `epoch` and `generations`.

    `slots`, `generations` and `checksums` (None: no checksums) have one element a block. `tokens` is the whole prefix
    up to the end of the last block; if `before` names the block before the first one, the tokens of these blocks only.
    Do not write to the arrays.
    """

    pool: str
    tenant: str
    tokens: Int32s
    first: int
    slots: Int64s
    epoch: int
    generations: UInt64s
    checksums: UInt64s | None
    before: Before | None = None

    def part(self, start: int, end: int) -> Offering:
        """Blocks `start` .. `end` of these: views, no copies."""
        if start == 0 and end >= len(self.slots):
            return self
        checksums = None if self.checksums is None else self.checksums[start:end]
        before = self.before
        if before is None:
            size = len(self.tokens) // (self.first + len(self.slots))
            tokens = self.tokens[: (self.first + end) * size]
        else:
            size = len(self.tokens) // len(self.slots)
            tokens = self.tokens[start * size : end * size]
            before = self.at(start - 1) if start else before
        return self._replace(
            tokens=tokens,
            before=before,
            first=self.first + start,
            slots=self.slots[start:end],
            generations=self.generations[start:end],
            checksums=checksums,
        )

    def at(self, block: int) -> Before:
        """Name block number `block` of these, so that further offers can continue it."""
        return Before(int(self.slots[block]), self.epoch, int(self.generations[block]))

    def going_on(self, before: Before) -> Offering:
        """Replace the tokens of the prefix before the first block by `before`, which names the block before it."""
        size = len(self.tokens) // (self.first + len(self.slots))
        return self._replace(tokens=self.tokens[self.first * size :], before=before)

    def pieces(self, blocks: int) -> Iterator[Offering]:
        """Cut into offerings of at most `blocks` blocks, in order. Each after the first continues the one before."""
        part = self.part(0, blocks)
        yield part
        if len(part.slots) < len(self.slots):
            rest = self if self.before is not None else self.going_on(self.at(0))  # its first part is not used
            for start in range(blocks, len(self.slots), blocks):
                yield rest.part(start, start + blocks)

    def message(self) -> OfferBlocks:
        """Make the message. Costs one copy of the arrays."""
        checksums = b"" if self.checksums is None else self.checksums.tobytes()
        return OfferBlocks(
            self.pool,
            self.tenant,
            self.tokens.tobytes(),
            self.first,
            self.slots.tobytes(),
            self.epoch,
            self.generations.tobytes(),
            checksums,
            self.before,
        )


def offering_of(message: OfferBlocks, block_size: int) -> Offering:
    """Decode `message` into arrays, which are views of its bytes. Raises MessageError if its parts do not fit together.

    Does not check whether the pool is known and has these slots: `Space` does.
    """
    slots = array_of(message.slots, np.dtype(np.int64))
    generations = array_of(message.generations, np.dtype(np.uint64))
    checksums = array_of(message.checksums, np.dtype(np.uint64)) if message.checksums else None
    tokens = array_of(message.tokens, np.dtype(np.int32))
    blocks = message.first + len(slots) if message.before is None else len(slots)
    if not len(slots) or len(slots) != len(generations) or len(tokens) != blocks * block_size:
        raise MessageError("an offer whose tokens, slots and generations do not fit each other")
    if checksums is not None and len(checksums) != len(slots):
        raise MessageError("an offer whose checksums do not fit its slots")
    if leading(generations != 0) < len(generations) or not message.epoch:
        raise MessageError("an offer at generation or epoch zero, which no slot ever has")
    if message.before is not None and not message.first:
        raise MessageError("an offer of the first block that goes on from another one")
    place = message.first, slots, message.epoch, generations, checksums, message.before
    return Offering(message.pool, message.tenant, tokens, *place)


def array_of(data: bytes, dtype: np.dtype[Number]) -> NDArray[Number]:
    """View `data` as an array of `dtype`. Raises MessageError unless it is a whole number of elements."""
    if len(data) % dtype.itemsize:
        raise MessageError(f"{len(data)} bytes are no whole number of {dtype.itemsize}-byte integers")
    array: NDArray[Number] = np.frombuffer(data, dtype)
    return array
