"""The arguments of a kernel: fragments of a slot, tables of their addresses, slot ids; a cache per pair of arrays."""
