"""What one kind of engine may exchange: all offers in one trie, told as changes and snapshots."""
