"""From an offer to the trie node that has it: what makes taking an offer down cheap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvmarket.registry.trie.tokens import Int64s
from kvmarket.support.sets import distinct

PAGE_BITS = 22  # a page is of so many offers, 16 MiB at most: one page for a pool, but for the very largest
_LEAST = 1 << 8  # offers of a new page
_LOW = (1 << PAGE_BITS) - 1


class OfferIndex:
    """The number of the node that each offer was last put into.

    Of an offer that no node has any more it may say anything: whoever asks looks into the node whether it is there.

    4 bytes an offer, in pages of consecutive offers that come and double as offers do, unless they are expected; so it
    is lean where offers are consecutive numbers, as the slots of a pool are, and takes a page for each that is far from
    all others. It is never built anew: no call costs more than its own offers, but for the copy of a page that grows.
    """

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, NDArray[np.int32]] = {}

    def expect(self, first: int, count: int) -> None:
        """Offers `first` .. `first + count` will come: their pages need not grow then. Memory is taken as they do."""
        last = first + count - 1
        for high in range(first >> PAGE_BITS, (last >> PAGE_BITS) + 1):
            self._page(high, min(last, high << PAGE_BITS | _LOW) & _LOW)

    def add(self, offers: Int64s, numbers: NDArray[np.int32] | int) -> None:
        """Note in which node (or nodes, one for each) these offers are now. Cost: O(n), some 5 us a page."""
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
        """The number of the node that had this offer last; 0 if none ever did. Cost: some 0.3 us."""
        page, low = self._pages.get(offer >> PAGE_BITS), offer & _LOW
        return int(page[low]) if page is not None and low < page.size else 0

    def find(self, offers: Int64s) -> NDArray[np.int32]:
        """As `node`, of each of these. Cost: O(n), some 10 us a page."""
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
        """No node has one of the offers `first` .. `first + count`, and no other shares a page with them."""
        for high in range(first >> PAGE_BITS, (first + count - 1 >> PAGE_BITS) + 1):
            self._pages.pop(high, None)

    def _by_page(self, offers: Int64s) -> list[tuple[int, NDArray[np.int64] | None]]:
        """The pages of these offers, and where among them each page's are; None for all."""
        if not offers.size:
            return []
        first = int(offers[0])
        if int((offers ^ first).max()) <= _LOW:  # mostly so
            return [(first >> PAGE_BITS, None)]
        highs = offers >> PAGE_BITS
        return [(high, np.flatnonzero(highs == high)) for high in distinct(highs).tolist()]

    def _page(self, high: int, low: int) -> NDArray[np.int32]:
        """The page of this number, with room for its offer `low`."""
        page = self._pages.get(high)
        if page is None or low >= page.size:
            room = max(_LEAST, 1 << low.bit_length())
            grown = np.zeros(room, np.int32)
            if page is not None:
                grown[: page.size] = page
            page = self._pages[high] = grown
        return page
