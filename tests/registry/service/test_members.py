"""The book of a market: who is a member, what is his, and that bad requests change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket.errors import LayoutError, MessageError, RefusedError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import (
    Change,
    Join,
    News,
    OfferBlocks,
    PoolRecord,
    PoolTold,
    Retire,
    Snapshot,
    SnapshotEnd,
)
from kvmarket.registry.service.members import Book

ME = Process(1, 1, 1)


def joining(*pools: str, space: str = "s", geometry: str = "g", process: Process = ME) -> Join:
    return Join(process, space, geometry, 2, tuple(PoolRecord(pool, 16, (ME,), b"") for pool in pools))


def offered(pool: str) -> OfferBlocks:
    return OfferBlocks(pool, "", bytes(8), 0, bytes(8), 1, np.array([1], np.uint64).tobytes())


def hear(book: Book, name: str, news: News) -> list[Change]:
    return list(book.hear(name, news))


def offer(book: Book, name: str, pool: str) -> None:
    assert hear(book, name, offered(pool)) == [offered(pool)]


@pytest.fixture
def book():
    made = Book()
    made.join("a", joining("pa", "pa2"))
    made.join("b", joining("pb"))
    return made


def test_members_of_one_space_share_it(book):
    book.join("c", joining("pc", space="other", geometry="other"))
    assert book.members["a"].space is book.members["b"].space
    assert book.members["c"].space is not book.members["a"].space
    offer(book, "a", "pa")
    offer(book, "c", "pc")
    assert book.blocks == 2
    assert [(row.pools, row.offers) for row in book.status()] == [(2, 1), (1, 0), (1, 1)]


def test_only_the_owner_offers_and_retires(book):
    for name, pool in (("a", "pb"), ("b", "pa"), ("a", "unknown")):
        for news in (offered(pool), Retire(pool, None), Snapshot(("",), (pool,), b"", b"", b""), SnapshotEnd((pool,))):
            with pytest.raises(MessageError, match="not one of this engine"):
                hear(book, name, news)
    assert book.blocks == 0


def test_retire_and_leave(book):
    offer(book, "a", "pa")
    offer(book, "b", "pb")
    retired = Retire("pb", np.array([0]).tobytes())
    assert hear(book, "b", retired) == [retired]
    with pytest.raises(MessageError):
        hear(book, "a", Retire("pa", b"123"))
    assert [row.offers for row in book.status()] == [1, 0]
    left = book.leave("a")
    assert left is not None
    assert [record.pool for record in left.pools] == ["pa", "pa2"]
    assert book.leave("a") is None
    space = book.members["b"].space
    while space.collecting:
        space.collect()
    assert book.blocks == 0 and book.spaces == {"s": space}, "who is left goes on in it"
    book.leave("b")
    assert book.spaces == {}
    book.join("d", joining("pa", geometry="another"))


def test_joining_twice_or_with_another_geometry(book):
    for bad in (joining("pa"), joining("new", "new")):
        with pytest.raises(RefusedError, match="joined already"):
            book.join("c", bad)
    with pytest.raises(LayoutError, match="fingerprint"):
        book.join("c", joining("pc", geometry="another"))
    assert "c" not in book.members


def test_a_process_that_heard_no_answer_may_join_again(book):
    assert book.former(joining("pa", "pa2")) == "a"
    assert book.former(joining("pa", process=Process(2, 2, 1))) is None
    assert book.former(joining("new")) is None


def test_what_a_snapshot_does_not_tell_again_goes(book):
    """And the others hear when all of a pool has been told for the first time, and of what went."""
    offer(book, "a", "pa")
    assert hear(book, "a", SnapshotEnd(("pa", "pa2"))) == [PoolTold("pa"), PoolTold("pa2")]
    assert book.blocks == 1, "no snapshot had begun"
    book.begin("a")
    assert book.telling("a")
    offer(book, "a", "pa")
    assert hear(book, "a", SnapshotEnd(("pa", "pa2"))) == []
    book.begin("a")
    assert hear(book, "a", SnapshotEnd(("pa", "pa2"))) == [Retire("pa", np.array([0]).tobytes())]
    assert not book.telling("a")
    assert book.blocks == 0


def test_branches_that_stand_already_are_passed_on_until_all_of_a_pool_was_told(book):
    """Whoever knows them of a service before needs to hear that they stand."""
    offer(book, "a", "pa")
    stands = Snapshot(("",), ("pa",), np.array([0, 0, 1, 1]).tobytes(), bytes(8), np.array([0, 0, 0, 1, 1]).tobytes())
    assert hear(book, "a", stands) == [stands]
    hear(book, "a", SnapshotEnd(("pa", "pa2")))
    assert hear(book, "a", stands) == []
    fresh = Snapshot(("",), ("pa",), np.array([0, 0, 1, 1]).tobytes(), bytes(8), np.array([0, 0, 0, 1, 2]).tobytes())
    assert hear(book, "a", fresh) == [fresh]
