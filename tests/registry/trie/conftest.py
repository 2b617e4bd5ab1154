"""Makes small tries use the structures of large ones."""

from __future__ import annotations

import pytest

from kvmarket.registry.trie import children, node


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with more than two children store them as nodes with thousands do."""
    monkeypatch.setattr(node, "WIDE", 2)
    monkeypatch.setattr(children, "SHARD", 2)
