"""Who is near an engine and shares nothing with it, by the service and the files beside its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmarket.registry.client.home import beside
from kvmarket.registry.client.others import Others
from kvmarket.registry.protocol import address as address_module
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import PROTOCOL
from kvmarket.registry.service.listener import Listener
from tests.model_engine import FACTS, ModelEngine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No markets of names but those of the test."""
    monkeypatch.setattr(address_module, "_HOME", tmp_path)


def others_of(engine: ModelEngine) -> Others:
    return engine.market._control.home.others()


def test_the_facts_that_differ_are_named_ours_first(own_address: str):
    one, other = (ModelEngine(own_address, facts={**FACTS, "dtype": dtype}) for dtype in ("int16", "int32"))
    like = ModelEngine(own_address, facts=FACTS | {"dtype": "int16"})
    for engine, there in ((one, ("dtype", "int16", "int32")), (other, ("dtype", "int32", "int16"))):
        found = others_of(engine)
        ((space, pid, label, differing),) = found.spaces
        assert differing == [there] and found.total == 1 and found.markets == []
        assert label.model == FACTS["model"] and space and pid
    for engine in (one, other, like):
        engine.close()
    assert others_of_empty(own_address) == []


def others_of_empty(address: str) -> list[object]:
    engine = ModelEngine(address)
    found = others_of(engine)
    engine.close()
    return [*found.spaces, *found.markets]


def test_other_markets_are_named(own_address: str):
    engine = ModelEngine(own_address)
    typo = Listener(Address(f"{own_address}-typo"))
    assert [str(other) for other in others_of(engine).markets] == [f"{own_address}-typo"]
    typo.close()
    assert others_of(engine).markets == []
    engine.close()


def test_where_it_has_joined_beside_another_version_is_said(own_address: str):
    engine = ModelEngine(own_address)
    place = engine.market._control.home
    assert place.place.startswith(f"market {own_address}, space ")
    place.at = beside(place.address)
    number = PROTOCOL.decode().strip().rpartition("/")[2]
    assert place.place.startswith(
        f"market {own_address}.{number} (engines of another version of kvmarket have {own_address}, and share among "
        "themselves: run one version), space "
    )
    engine.close()
