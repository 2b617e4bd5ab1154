"""The book of a market: who is a member, what is his, and that bad requests change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from kvmarket.errors import LayoutError, MessageError, NotJoinedError, RefusedError
from kvmarket.registry.book import Book
from kvmarket.registry.messages import Join, OfferBlocks, PoolRecord, Retire
from kvmarket.shared_file import Process

ME = Process(1, 1, 1)


def joining(*pools: str, space: str = "s", geometry: str = "g", process: Process = ME) -> Join:
    return Join(process, space, geometry, 2, tuple(PoolRecord(pool, 16, (ME,), b"") for pool in pools))


def offer(book: Book, name: str, pool: str) -> str:
    return book.hear(name, OfferBlocks(pool, "", bytes(8), 0, bytes(8), 1, np.array([1], np.uint64).tobytes()))


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
    assert offer(book, "a", "pa") == "s"
    assert offer(book, "c", "pc") == "other"
    assert book.blocks == 2
    assert [(row.pools, row.offers) for row in book.status()] == [(2, 1), (1, 0), (1, 1)]


def test_only_the_owner_offers_and_retires(book):
    for name, pool in (("a", "pb"), ("b", "pa"), ("nobody", "pa"), ("", "pa"), ("", "unknown")):
        member = name in book.members
        kind, why = (MessageError, "not one of this engine") if member else (NotJoinedError, "has not joined")
        with pytest.raises(kind, match=why):
            offer(book, name, pool)
        with pytest.raises(kind, match=why):
            book.hear(name, Retire(pool, None))
    assert book.blocks == 0


def test_retire_and_leave(book):
    offer(book, "a", "pa")
    offer(book, "b", "pb")
    assert book.hear("b", Retire("pb", np.array([0]).tobytes())) == "s"
    with pytest.raises(MessageError):
        book.hear("a", Retire("pa", b"123"))
    assert [row.offers for row in book.status()] == [1, 0]
    left = book.leave("a")
    assert left is not None
    assert [record.pool for record in left.pools] == ["pa", "pa2"]
    assert book.leave("a") is None
    assert book.blocks == 0
    book.leave("b")
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
