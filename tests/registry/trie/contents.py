"""The contents of a trie in a form that can be compared."""

from __future__ import annotations

from kvmarket.registry.trie.prefix_trie import PrefixTrie


class SmallNodes(PrefixTrie):
    """A trie with short nodes, so that short tests have runs of several nodes."""

    NODE_BLOCKS = 3


def contents(held: PrefixTrie) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Return {prefix: offers} of all blocks with an offer."""
    found = {}
    for prompt, offers in held.items():
        for block, known in enumerate(offers, len(prompt) // held.block_size - len(offers)):
            prefix = tuple(prompt[: (block + 1) * held.block_size].tolist())
            assert prefix not in found
            found[prefix] = known
    return found
