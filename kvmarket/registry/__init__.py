"""The control plane: the trie of offers, the service that holds it, the client, the messages between them.

No module here knows CUDA, pools or layouts: an offer is a pool's id, a slot, an epoch and a generation.
"""

from __future__ import annotations

from kvmarket.registry.trie.prefix_trie import PrefixTrie

__all__ = ["PrefixTrie"]
