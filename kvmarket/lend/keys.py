"""Names of blocks for a keeper: a hash over the tenant and all tokens up to the block's end.

Two blocks with one hash would cost a hit, never a wrong one: what is offered, and found, goes by the tokens.
"""

from __future__ import annotations

import xxhash

from kvmarket.registry.trie.tokens import Int32s


def first_key(tenant: str) -> bytes:
    """What the first block of a tenant's prompts goes on from."""
    return xxhash.xxh3_128_digest(tenant.encode())


def keys_of(tokens: Int32s, block_size: int, before: bytes) -> list[bytes]:
    """The key of each whole block of `tokens`, which go on from the block `before`. Costs 1 us a block."""
    data, width, keys = tokens.tobytes(), 4 * block_size, []
    for at in range(0, len(data) // width * width, width):
        before = xxhash.xxh3_128_digest(before + data[at : at + width])
        keys.append(before)
    return keys
