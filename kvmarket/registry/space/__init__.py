"""A space: all offers that engines of one kind can exchange, in one trie; and its changes and snapshots."""
