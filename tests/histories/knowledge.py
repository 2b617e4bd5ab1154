"""What all engines of a history must know once nothing fails any more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvmarket.registry.service.exchange import Exchange
from tests.histories.owner import Engine


def unknown_in(exchange: Exchange, engines: Sequence[Engine]) -> str:
    """What a reader does not know of the pools and offers that stand; empty if all know all and nothing else."""
    pools = {name for engine in engines for name in engine.held()}
    replicas = [engine.client._replica for engine in engines]
    for known in (
        {name for space in exchange.members.spaces.values() for name in space.pools},
        *(set(each.space.pools) - set(each._absent) for each in replicas),  # absent ones are forgotten later
    ):
        if known != pools:
            return f"{len(known - pools)} pools are known that are gone, {len(pools - known)} are not known"
    offered = {id(engine): engine.offered() for engine in engines}
    everything = set().union(*offered.values())
    for reader in engines:
        for tenant, tokens in everything:
            prefixes = [(tenant, tokens[:end]) for end in range(1, len(tokens) + 1)]
            mine = offered[id(reader)] if not reader.client._finds_own else set()
            others = set().union(*(offered[id(each)] for each in engines if each is not reader or not mine))
            known = others if not reader.client._finds_own else everything
            wanted = next((i for i, prefix in enumerate(prefixes) if prefix not in known), len(prefixes))
            hit = reader.control.match(np.array(tokens, np.int32), tenant=tenant)
            if hit.blocks < wanted:
                return f"{hit.blocks} of {wanted} blocks of {tenant!r} {tokens} are known"
    return ""
