"""What goes out when: offers at once, retirements with them or a little later; nobody hears what he said himself."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable

import pytest

from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import (
    Change,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    PoolRecord,
    Promise,
    Retire,
    Settle,
    Snapshot,
)
from kvmarket.registry.service import stream as stream_module
from kvmarket.registry.service.stream import CHANGES_BYTES, Stream


class Listener:
    """In place of a feed: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Change, ...]] = []

    def tell(self, *changes: Change) -> bool:
        self.told.append(changes)
        return True

    def take(self) -> list[tuple[Change, ...]]:
        told, self.told = self.told, []
        return told


def listened(*names: Hashable) -> tuple[Stream, dict[Hashable, Listener]]:
    stream, listeners = Stream(), {name: Listener() for name in names}
    stream.feeds.update(listeners)  # type: ignore[arg-type]
    return stream, listeners


def test_retirements_linger_until_something_comes_that_others_wait_for():
    stream, listeners = listened("one")
    assert stream.due() == math.inf
    stream.add(Retire("pa", None))
    assert 0 < stream.due() <= stream_module.LINGER_SECONDS
    stream.add(PoolGone("pb"))
    assert stream.due() <= 0
    stream.flush()
    assert listeners["one"].take() == [(Retire("pa", None), PoolGone("pb"))], "in order"
    assert stream.due() == math.inf
    stream.flush()
    assert listeners["one"].take() == []


def test_a_retirement_alone_is_due_in_the_end():
    stream = Stream()
    stream.add(Retire("pa", None))
    first = stream.due()
    time.sleep(0.001)
    stream.add(Retire("pb", None))
    assert stream.due() < first, "a later one put the first off"


def test_nobody_is_told_what_he_said_himself():
    stream, listeners = listened("one", "two", "three")
    first, second, gone = Retire("pa", None), Retire("pb", None), PoolGone("pc")
    stream.add(first, "one")
    stream.flush()
    assert [listener.take() for listener in listeners.values()] == [[], [(first,)], [(first,)]]
    stream.add(second, "two")
    stream.add(first, "one")
    stream.add(gone)
    stream.flush()
    told = [listener.take() for listener in listeners.values()]
    assert told == [[(second, gone)], [(first, gone)], [(second, first, gone)]]


def test_much_is_told_in_several_messages():
    stream, listeners = listened("one")
    offers = [OfferBlocks("pa", "", bytes(CHANGES_BYTES), 0, bytes(8), 1, bytes([number] * 8)) for number in range(3)]
    for each in offers:
        stream.add(each)
    stream.flush()
    assert listeners["one"].take() == [(each,) for each in offers]


@pytest.mark.parametrize(
    "long",
    [
        OfferBlocks("p", "", bytes(CHANGES_BYTES), 0, bytes(8), 1, bytes(8)),
        OfferBlocks("p", "", b"", 0, bytes(CHANGES_BYTES // 3 + 1), 1, b""),
        Snapshot((), (), bytes(CHANGES_BYTES), b"", b""),
        Snapshot((), (), b"", bytes(CHANGES_BYTES), b""),
        Snapshot((), (), b"", b"", bytes(CHANGES_BYTES)),
        Snapshot((), (), b"", b"", b"", bytes(CHANGES_BYTES)),
        Promise("p", "", bytes(CHANGES_BYTES), 1),
        Retire("p", bytes(CHANGES_BYTES)),
        PoolJoined(PoolRecord("p", 1, (Process(1, 1, 1),), bytes(CHANGES_BYTES))),
    ],
    ids=lambda change: type(change).__name__,
)
def test_what_is_long_fills_a_message(long):
    stream, listeners = listened("one")
    few = (Settle("p", 1), Retire("p", None))
    for change in (*few, long, *few):
        stream.add(change)
    stream.flush()
    assert listeners["one"].take() == [(*few, long), few]
