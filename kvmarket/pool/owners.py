"""One set of generations per cache memory: all markets of this process over the same memory share it.

So a slot that is retired in one market is dead in all of them.
"""

from __future__ import annotations

import os
import threading

import msgspec

from kvmarket.errors import MisuseError
from kvmarket.layout.paged import PagedCache
from kvmarket.pool.generations import Generations
from kvmarket.pool.landings import Landings


class _Owned(msgspec.Struct):
    landings: Landings
    process: int
    markets: int


_lock = threading.Lock()
_owned: dict[tuple[int, ...], _Owned] = {}


def acquire(cache: PagedCache) -> Landings:
    """Return the Landings, with the Generations, of `cache`'s memory. The first market of the memory makes them.

    Each call needs a `release`. Raises MisuseError if another open market divides the memory into other slots, or if
    the memory is in a market of the process that this one was forked from.
    """
    array = cache.slot_array()
    memory = array.addresses()
    with _lock:
        owned = _owned.get(memory)
        if owned is None:
            overlapping = next((key for key in _owned if set(key) & set(memory)), None)
            if overlapping is not None:
                raise MisuseError("part of this cache is in another market; make one PagedCache of all of it")
            owned = _owned[memory] = _Owned(Landings(array, Generations(cache.slots)), os.getpid(), 0)
        if owned.process != os.getpid():
            raise MisuseError(
                f"this cache is shared memory of process {owned.process}, which this one was forked from, and in a "
                "market of its own; allocate a cache in this process"
            )
        generations = owned.landings.generations
        if generations.slots != cache.slots:
            raise MisuseError(
                f"this memory is in another open market as {generations.slots} slots, here as {cache.slots}; use one "
                "PagedCache"
            )
        owned.markets += 1
        return owned.landings


def release(generations: Generations) -> bool:
    """Undo one `acquire`. Returns True if no market uses `generations` any more: the caller must then close them."""
    with _lock:
        for memory, owned in list(_owned.items()):
            if owned.landings.generations is generations:
                owned.markets -= 1
                if owned.markets:
                    return False
                del _owned[memory]
    return True
