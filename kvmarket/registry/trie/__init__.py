"""The prefix trie: exact tokens, in whole blocks, with the offers of each. Knows no sockets and no processes."""
