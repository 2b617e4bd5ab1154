"""Processes of this node: whether one is alive, shared memory by name, clean-up after dead ones. Imports no torch."""
