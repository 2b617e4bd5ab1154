"""Small tries that have what large ones have."""

from __future__ import annotations

import pytest

from kvmarket.registry.trie import children, node


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with a few children keep them as nodes with thousands of them do."""
    monkeypatch.setattr(node, "WIDE", 2)
    monkeypatch.setattr(children, "SHARD", 2)
