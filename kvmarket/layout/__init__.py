"""Paged caches: where the bytes of a slot lie, and whether what is said of that agrees with itself."""
