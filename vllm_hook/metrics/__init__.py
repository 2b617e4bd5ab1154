"""Counts of the hook, in vLLM's log and on its metrics page."""
