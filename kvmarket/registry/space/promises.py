"""Promises: prefixes that engines are computing now and will offer soon, so that others need not compute them too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from kvmarket.registry.protocol.messages import Promise
from kvmarket.registry.trie.tokens import Int32s
from kvmarket.support.flags import leading

PROMISES_PER_POOL = 256  # beyond it the oldest is forgotten, which is harmless: a promise is only a hint


class _Given(NamedTuple):
    message: Promise
    head: tuple[str, bytes]  # tenant, tokens of the first block


class Promises:
    """The open promises of a space. Only hints: no fetch relies on one. Not thread-safe."""

    def __init__(self, block_size: int) -> None:
        """Start without promises, for blocks of `block_size` tokens."""
        self._width = 4 * block_size
        self._given: dict[str, dict[int, _Given]] = {}
        self._by_head: dict[tuple[str, bytes], list[Promise]] = {}

    def __iter__(self) -> Iterator[Promise]:
        """Iterate over the open promises; those of one pool from oldest to newest."""
        return (given.message for pool in self._given.values() for given in pool.values())

    def add(self, promise: Promise) -> None:
        """Add a promise; it replaces one with the same number. Ignored if shorter than a block. Costs a few us."""
        self.settle(promise.pool, promise.number)
        if len(promise.tokens) < self._width:
            return
        mine = self._given.setdefault(promise.pool, {})
        if len(mine) >= PROMISES_PER_POOL:
            self.settle(promise.pool, next(iter(mine)))
        head = promise.tenant, promise.tokens[: self._width]
        mine[promise.number] = _Given(promise, head)
        self._by_head.setdefault(head, []).append(promise)

    def settle(self, pool: str, number: int) -> None:
        """Forget a promise, kept or not. Does nothing for an unknown one."""
        given = self._given.get(pool, {}).pop(number, None)
        if given is None:
            return
        alike = self._by_head[given.head]
        alike.remove(given.message)
        if not alike:
            del self._by_head[given.head]

    def drop(self, pool: str) -> None:
        """Forget all promises of a pool."""
        for number in list(self._given.get(pool, ())):
            self.settle(pool, number)
        self._given.pop(pool, None)

    def blocks(self, tokens: Int32s, tenant: str, without: Collection[str]) -> int:
        """Number of leading whole blocks of `tokens` that are promised in pools other than `without`.

        Costs a few us, and a memcmp for each promise with the same first block.
        """
        alike = self._by_head.get((tenant, tokens[: self._width // 4].tobytes()), ())
        return max((self._common(tokens, each) for each in alike if each.pool not in without), default=0)

    def _common(self, tokens: Int32s, promise: Promise) -> int:
        """Number of leading whole blocks of `tokens` that `promise` covers."""
        promised = np.frombuffer(promise.tokens, np.int32)
        most = min(len(promised), len(tokens))
        return leading(promised[:most] == tokens[:most]) * 4 // self._width
