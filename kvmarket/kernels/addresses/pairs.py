"""Remember what was prepared for copying from one array to another, for as long as both arrays live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from kvmarket.layout.paged import SlotArray

T = TypeVar("T")


class PairCache(Generic[T]):
    """Calls ``build(source, destination)`` once per pair of arrays; a hit costs about a microsecond.

    What ``build`` returns must not hold the arrays themselves, or they would never die.
    """

    def __init__(self, build: Callable[[SlotArray, SlotArray], T]) -> None:
        self._build = build
        self._made: WeakKeyDictionary[SlotArray, WeakKeyDictionary[SlotArray, T]] = WeakKeyDictionary()

    def __call__(self, source: SlotArray, destination: SlotArray) -> T:
        """Return the value for this pair, built now if it is the first call."""
        sources = self._made.get(destination)
        if sources is None:
            sources = self._made.setdefault(destination, WeakKeyDictionary())
        made = sources.get(source)
        if made is None:
            made = sources.setdefault(source, self._build(source, destination))
        return made
