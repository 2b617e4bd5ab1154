"""What an engine says of its pools, done to a space: by the service, and by every replica."""

from __future__ import annotations

import numpy as np

from kvmarket.registry.messages import News, OfferBlocks, Promise, Retire, Settle
from kvmarket.registry.offering import array_of, offering_of
from kvmarket.registry.space import Space
from kvmarket.registry.tokens import Int64s


def put_in(space: Space, news: News) -> None:
    """Do to `space` what `news` says. Raises MessageError, and does nothing, where it cannot be.

    Costs as the method of `Space` that does it.
    """
    match news:
        case OfferBlocks():
            space.offer(offering_of(news, space.block_size))
        case Retire():
            space.retire(news.pool, slots_of(news))
        case Promise():
            space.promise(news)
        case Settle():
            space.promises.settle(news.pool, news.number)


def slots_of(retire: Retire) -> Int64s | None:
    """The slots that a retirement names. Raises MessageError when they are no whole number of integers."""
    return None if retire.slots is None else array_of(retire.slots, np.dtype(np.int64))
