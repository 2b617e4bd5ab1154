"""The prefix trie: exact tokens, in whole blocks, with the offers of each block. No sockets, no processes."""
