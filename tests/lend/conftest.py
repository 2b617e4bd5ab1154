"""Two engines of one kind, for the tests of this folder."""

from __future__ import annotations

import pytest

from tests.model_engine import ModelEngine


@pytest.fixture
def two(market_address):
    """Two engines of one kind."""
    engines = ModelEngine(market_address), ModelEngine(market_address)
    yield engines
    for engine in engines:
        engine.close()
