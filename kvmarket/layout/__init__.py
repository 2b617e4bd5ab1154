"""Paged caches: where the bytes of a slot lie in memory, and checks that a layout is consistent."""
