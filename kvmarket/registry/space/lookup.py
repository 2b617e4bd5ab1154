"""Look up what a space holds: the offers of a prefix in one pool, and the prefix of an offer."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kvmarket.registry.protocol.messages import Before
from kvmarket.registry.protocol.offering import Offering
from kvmarket.registry.space.space import SLOT_BITS, SLOT_MASK, Space
from kvmarket.registry.trie.node import OFFERS_PER_BLOCK
from kvmarket.registry.trie.tokens import Int32s
from kvmarket.support.flags import Flags


def before(space: Space, offering: Offering) -> Before | None:
    """The block before the first block of `offering`, if the same pool offers it, else None.

    `offering` must have the whole prefix. Costs one match of the prefix.
    """
    pool, prefix = space.pools[offering.pool], offering.tokens[: offering.first * space.block_size]
    arrays = space.trie.match_arrays(prefix, offering.first - 1, holes=True, tenant=offering.tenant.encode())
    for offers in arrays if offering.first else ():
        for slot in (offers[:, 0][offers[:, 0] >> SLOT_BITS == pool.number] & SLOT_MASK).tolist():
            if pool.generations[slot]:
                return Before(slot, int(pool.epochs[slot]), int(pool.generations[slot]))
        return None
    return None


def holds(space: Space, offering: Offering) -> Flags:
    """For each block of `offering`, whether the trie holds the offer of its slot on that block.

    Also true for a block with OFFERS_PER_BLOCK offers, where an older offer may have been dropped.
    """
    found, at = np.zeros(len(offering.slots), np.bool_), 0
    wanted = offering.slots | (space.pools[offering.pool].number << SLOT_BITS)
    tenant = offering.tenant.encode()
    for offers in space.trie.match_arrays(offering.tokens, offering.first, holes=True, tenant=tenant):
        end = at + offers.shape[1]
        found[at:end] = (offers == wanted[at:end]).any(axis=0)
        if len(offers) == OFFERS_PER_BLOCK:
            found[at:end] |= offers[-1] >= 0
        at = end
    return found


def prefix_of(space: Space, block: Before, pool: str) -> tuple[str, Int32s] | None:
    """The tenant and the tokens of the prefix that ends in this block of `pool`; None unless it is on offer.

    Costs one copy of the tokens.
    """
    known = space.pools.get(pool)
    place = space.trie.place(block.slot | known.number << SLOT_BITS) if known is not None and known.has(block) else None
    if place is None:
        return None
    node, index = place
    return space.trie.tenant(place).decode(), np.frombuffer(node.path(index + 1), np.int32)


def far_offers(space: Space, tokens: Int32s, tenant: str, first: int, without: Collection[str]) -> Flags:
    """For each offered block of the prefix from block `first` on, whether a far pool offers it, but for `without`."""
    pools = [pool.number for name, pool in space.pools.items() if pool.record.far and name not in without]
    arrays = space.trie.match_arrays(tokens, first, tenant=tenant.encode())
    found = [np.isin(offers >> SLOT_BITS, pools).any(axis=0) for offers in arrays]
    return np.concatenate(found) if found else np.zeros(0, np.bool_)


def crowded(space: Space, tokens: Int32s, tenant: str) -> Flags:
    """For each leading block of the prefix that has offers, whether it has so many that one more drops the oldest."""
    arrays = space.trie.match_arrays(tokens, 0, tenant=tenant.encode())
    full = [
        offers[-1] >= 0 if len(offers) == OFFERS_PER_BLOCK else np.zeros(offers.shape[1], np.bool_) for offers in arrays
    ]
    return np.concatenate(full) if full else np.zeros(0, np.bool_)
