"""What a kernel is told: the fragments of a slot, pairs of addresses, tables of them, and slots."""
