"""Helpers that any module may import: flags, sets of integers, transient failures, advice, supervised threads."""
