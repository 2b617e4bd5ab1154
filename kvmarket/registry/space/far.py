"""The pools of a space that take longer to read than an engine's own memory, such as a lender's memory of the host."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kvmarket.registry.trie.tokens import Int64s


class Far:
    """The numbers of far pools. Not thread-safe."""

    def __init__(self) -> None:
        """Start with none."""
        self._numbers: set[int] = set()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._numbers)

    def add(self, number: int) -> None:
        """Note that the pool with this number is far."""
        self._numbers.add(number)

    def remove(self, number: int) -> None:
        """Forget a number; ignore one that was not added."""
        self._numbers.discard(number)

    def without(self, numbers: Int64s, offers: Int64s, unwanted: Collection[int]) -> Int64s:
        """The offers without those of far pools on blocks that another pool offers, which are -1 then.

        offers: (rows, blocks), row 0 the newest of each block, -1 for none; numbers: of their pools. Offers of the
        `unwanted` pools do not count. Costs about 15 us.
        """
        far = np.isin(numbers, list(self._numbers))
        near = ~far & (offers >= 0)
        if unwanted:
            near &= ~np.isin(numbers, list(unwanted))
        found: Int64s = np.where(far & near.any(axis=0), -1, offers)
        return found
