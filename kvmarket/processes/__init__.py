"""Processes and what they share by name: who lives, files in shared memory, what the dead have left. Knows no torch."""
