"""Which way a mover takes for a copy: of those that go from the source, those that take the copy, by the choice."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from kvmarket import PagedCache
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Candidate, Choice, Forced, Rate
from kvmarket.ways.copying import Copy
from kvmarket.ways.gpu import copy_engine, staged_way
from kvmarket.ways.gpu.copy_way import CopyWay
from kvmarket.ways.gpu.staged_way import StagedWay
from kvmarket.ways.way import Means, Way, Ways

SLOTS = 8


class Made(NamedTuple):
    """A job, as far as it is looked at here."""

    way: str
    copy: Copy


class AnyWay(Way):
    """Stands for `pull`, whose kernel runs on a GPU alone."""

    candidate = Candidate("any")
    rates = (Rate("any", 1, 1, 1.0),)

    def __init__(self, means: Means) -> None:
        pass

    def prepare(self, source: SlotArray) -> Any:
        return partial(Made, "any")


def pages() -> SlotArray:
    layers = [torch.zeros(SLOTS, 2, 4, 16, dtype=torch.int16) for _ in range(2)]
    return PagedCache(layers, block_size=4).slot_array()


def packed() -> SlotArray:
    layout = pages().layout.as_packed(SLOTS)
    return SlotArray(layout, [torch.zeros(layout.segments[0], dtype=torch.uint8)])


def copy_of(source: SlotArray, *, summed: bool = False) -> Copy:
    return Copy(source, np.arange(3), np.arange(3), summed)


@pytest.fixture
def new_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that copies many ranges in one call; jobs say whose they are, and rings take no memory."""
    monkeypatch.setattr(copy_engine, "takes_batches", lambda: True)
    monkeypatch.setattr(staged_way, "Ring", lambda own, stream: "a ring")
    monkeypatch.setattr(staged_way, "StagedJob", lambda means, ring, copy: Made("staged", copy))
    monkeypatch.setattr("kvmarket.ways.gpu.copy_way.CopyJob", lambda means, copy: Made("copy", copy))


class Asked(Choice):
    """Notes what it is asked, and says the last way that can go."""

    def __init__(self) -> None:
        super().__init__(())
        self.able: list[tuple[tuple[str, ...], bool]] = []

    def way(self, nbytes: int, fragment: int, able: tuple[Candidate, ...], *, busy: bool = False) -> str:
        self.able.append((tuple(way.name for way in able), busy))
        return able[-1].name


def test_only_ways_that_can_take_a_copy_may_be_chosen(new_driver: None):
    means, asked, idle = Means(packed(), (None,) * 3), Asked(), [True]  # type: ignore[arg-type]
    kinds: list[type[Way]] = [AnyWay, CopyWay, StagedWay]
    flat = Ways(means, kinds, lambda: idle[0], choice=asked)
    for source, summed, taken in (
        (packed(), False, "copy"),
        (packed(), True, "staged"),  # the copy engine sums nothing
        (pages(), False, "any"),
        (pages(), True, "any"),
    ):
        copy = copy_of(source, summed=summed)
        assert flat.job(copy) == Made(taken, copy)
    assert asked.able == [(("any", "copy"), False), (("any", "staged"), False)], "nothing to choose: not asked"
    asked.able.clear()
    idle[0] = False
    paged = Ways(Means(pages(), (None,) * 3), kinds, lambda: idle[0], choice=asked)  # type: ignore[arg-type]
    assert [paged.job(copy_of(packed(), summed=summed)).way for summed in (False, True)] == ["staged", "staged"]  # type: ignore[attr-defined]
    assert asked.able == [(("any", "staged"), True)] * 2


def test_an_old_driver_leaves_the_first_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(copy_engine, "takes_batches", lambda: False)
    ways = Ways(Means(packed()), [AnyWay, CopyWay, StagedWay], lambda: True, choice=Forced("copy"))
    assert ways.job(copy_of(packed())).way == "any"  # type: ignore[attr-defined]


def test_what_cannot_go_just_now_goes_the_first_way(new_driver: None, monkeypatch: pytest.MonkeyPatch):
    def fail(own: SlotArray, stream: object) -> None:
        raise torch.OutOfMemoryError("0 MiB free")

    monkeypatch.setattr(staged_way, "Ring", fail)
    means = Means(pages(), (None,) * 3)  # type: ignore[arg-type]
    ways = Ways(means, [AnyWay, StagedWay], lambda: True, choice=Forced("staged"))
    assert ways.job(copy_of(packed())).way == "any"  # type: ignore[attr-defined]


def test_no_sums_where_there_can_be_none():
    ways = Ways(Means(pages()), [AnyWay], lambda: True)
    assert not ways.job(copy_of(pages(), summed=True)).copy.summed, "neither side is packed"  # type: ignore[attr-defined]
    assert ways.job(copy_of(packed(), summed=True)).copy.summed  # type: ignore[attr-defined]


def test_the_ways_in_words(new_driver: None):
    kinds: list[type[Way]] = [AnyWay, CopyWay, StagedWay]
    for own, words in ((packed(), "any or copy (no SM)"), (pages(), "any")):
        ways = Ways(Means(own), kinds, lambda: True)
        ways.prepare(own)
        assert ways.describe() == words


def test_a_pool_that_is_gone_is_not_kept():
    ways, source = Ways(Means(pages()), [AnyWay], lambda: True), packed()
    ways.prepare(source)
    assert len(ways._links) == 1
    del source
    assert not ways._links
