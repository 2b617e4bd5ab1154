"""A cache of values per pair (source array, destination array), kept for as long as both arrays live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from kvmarket.layout.paged import SlotArray

T = TypeVar("T")


class PairCache(Generic[T]):
    """Calls ``build(source, destination)`` once per pair of arrays; a hit costs about a microsecond.

    The value that ``build`` returns must not refer to the arrays themselves, or they would never be freed.
    """

    def __init__(self, build: Callable[[SlotArray, SlotArray], T]) -> None:
        self._build = build
        self._made: WeakKeyDictionary[SlotArray, WeakKeyDictionary[SlotArray, T]] = WeakKeyDictionary()

    def __call__(self, source: SlotArray, destination: SlotArray) -> T:
        """Return the value for this pair; the first call builds it."""
        sources = self._made.get(destination)
        if sources is None:
            sources = self._made.setdefault(destination, WeakKeyDictionary())
        made = sources.get(source)
        if made is None:
            made = sources.setdefault(source, self._build(source, destination))
        return made
