"""Changes of a market, done to a space: by the service, and by every replica."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from kvmarket.registry.protocol.messages import News, OfferBlocks, Promise, Retire, Settle, Snapshot
from kvmarket.registry.protocol.offering import array_of, offering_of
from kvmarket.registry.space.put_branches import put_branches
from kvmarket.registry.space.space import Space
from kvmarket.registry.trie.tokens import Int64s

SLICE_BLOCKS = 64  # of an offer, put up in one step: some 50 us


def put_in(space: Space, news: News, but: Collection[str] = ()) -> Iterator[bool]:
    """Do to `space` what `news` says, in steps of some 0.2 ms; of `Snapshot` not what they say of the pools `but`.

    Each step says whether it put up offers that did not stand already. Raises MessageError where something cannot be.
    The end of a snapshot is the business of whoever keeps the space.
    """
    match news:
        case OfferBlocks():
            for piece in offering_of(news, space.block_size).pieces(SLICE_BLOCKS):
                space.offer(piece)
                yield True
        case Snapshot():
            yield from put_branches(space, news, but)
        case Retire():
            space.retire(news.pool, slots_of(news))
        case Promise():
            space.promise(news)
        case Settle():
            space.promises.settle(news.pool, news.number)


def slots_of(retire: Retire) -> Int64s | None:
    """The slots that a retirement names. Raises MessageError when they are no whole number of integers."""
    return None if retire.slots is None else array_of(retire.slots, np.dtype(np.int64))
