"""One memory, one set of generations: markets of this process over the same cache share them.

So what is retired in one of them is dead in all.
"""

from __future__ import annotations

import threading

import msgspec

from kvmarket.errors import MisuseError
from kvmarket.layout import PagedCache
from kvmarket.pool.generations import Generations


class _Owned(msgspec.Struct):
    generations: Generations
    markets: int


_lock = threading.Lock()
_owned: dict[tuple[int, ...], _Owned] = {}


def acquire(cache: PagedCache) -> Generations:
    """The generations of `cache`'s memory, made for its first market.

    Raises MisuseError if another open market cuts that memory otherwise.
    """
    memory = cache.slot_array().addresses()
    with _lock:
        owned = _owned.get(memory)
        if owned is None:
            overlapping = next((key for key in _owned if set(key) & set(memory)), None)
            if overlapping is not None:
                raise MisuseError("part of this cache is in another market; make one PagedCache of all of it")
            owned = _owned[memory] = _Owned(Generations(cache.slots), 0)
        if owned.generations.slots != cache.slots:
            raise MisuseError(
                f"this memory is in another open market as {owned.generations.slots} slots, here as "
                f"{cache.slots}; use one PagedCache"
            )
        owned.markets += 1
        return owned.generations


def release(generations: Generations) -> bool:
    """A market is done with `generations`; whether it was the last one, which then closes them."""
    with _lock:
        for memory, owned in list(_owned.items()):
            if owned.generations is generations:
                owned.markets -= 1
                if owned.markets:
                    return False
                del _owned[memory]
    return True
