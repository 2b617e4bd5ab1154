"""An index from an offer to the trie node that holds it, so that taking an offer down is cheap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmarket.registry.trie.tokens import Int64s
from kvmarket.support.sets import distinct

PAGE_BITS = 22  # a page covers 2**22 offers, at most 16 MiB: one page is enough for all but the largest pools
_LEAST = 1 << 8  # offers of a new page
_LOW = (1 << PAGE_BITS) - 1


class OfferIndex:
    """The number of the node into which each offer was last put.

    For an offer that no node holds any more the answer may be wrong: the caller must look into the node.

    4 bytes an offer, in pages of consecutive offers. A page doubles as offers come, unless `expect` announced them. So
    memory is small if offers are consecutive numbers, as the slots of a pool are; an offer far from all others takes a
    page of its own. No call costs more than its own offers, except the copy of a page that grows.
    """

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, NDArray[np.int32]] = {}

    def expect(self, first: int, count: int) -> None:
        """Announce offers `first` .. `first + count`, so that their pages need not grow. Takes memory as they come."""
        last = first + count - 1
        for high in range(first >> PAGE_BITS, (last >> PAGE_BITS) + 1):
            self._page(high, min(last, high << PAGE_BITS | _LOW) & _LOW)

    def add(self, offers: Int64s, numbers: NDArray[np.int32] | int) -> None:
        """Note the node of these offers: one number for all, or one for each. Cost: O(n), about 5 us a page."""
        if offers.size == 1 and isinstance(numbers, int):
            offer = int(offers[0])
            page = self._page(offer >> PAGE_BITS, offer & _LOW)
            page[offer & _LOW] = numbers
            return
        for high, mine in self._by_page(offers):
            low = (offers if mine is None else offers[mine]) & _LOW
            these = numbers if mine is None or isinstance(numbers, int) else numbers[mine]
            self._page(high, int(low.max()))[low] = these

    def node(self, offer: int) -> int:
        """The number of the node that held this offer last; 0 if none ever did. Cost: about 0.3 us."""
        page, low = self._pages.get(offer >> PAGE_BITS), offer & _LOW
        return int(page[low]) if page is not None and low < page.size else 0

    def find(self, offers: Int64s) -> NDArray[np.int32]:
        """As `node`, for each of these offers: int32. Cost: O(n), about 10 us a page."""
        found = np.zeros(offers.size, np.int32)
        for high, mine in self._by_page(offers):
            page = self._pages.get(high)
            if page is None:
                continue
            low = (offers if mine is None else offers[mine]) & _LOW
            numbers = page.take(low, mode="clip")
            numbers[low >= page.size] = 0
            found[slice(None) if mine is None else mine] = numbers
        return found

    def forget(self, first: int, count: int) -> None:
        """Free the pages of offers `first` .. `first + count`. No node may hold any offer of these pages."""
        for high in range(first >> PAGE_BITS, (first + count - 1 >> PAGE_BITS) + 1):
            self._pages.pop(high, None)

    def _by_page(self, offers: Int64s) -> list[tuple[int, NDArray[np.int64] | None]]:
        """The pages of these offers, each with the indices of its offers (None: all of them)."""
        if not offers.size:
            return []
        first = int(offers[0])
        if int((offers ^ first).max()) <= _LOW:  # the usual case
            return [(first >> PAGE_BITS, None)]
        highs = offers >> PAGE_BITS
        return [(high, np.flatnonzero(highs == high)) for high in distinct(highs).tolist()]

    def _page(self, high: int, low: int) -> NDArray[np.int32]:
        """The page with number `high`, grown if needed so that it has its offer `low`."""
        page = self._pages.get(high)
        if page is None or low >= page.size:
            room = max(_LEAST, 1 << low.bit_length())
            grown = np.zeros(room, np.int32)
            if page is not None:
                grown[: page.size] = page
            page = self._pages[high] = grown
        return page
