"""The book of a market: what is put up is found, what is taken down is not, and bad requests change nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.errors import LayoutError, MessageError, RefusedError
from kvmarket.registry.book import Book
from kvmarket.registry.messages import Join, Match, OfferBlocks, PoolRecord
from kvmarket.shared_file import Process

ME = Process(1, 1, 1)
SIZE = 2


def join(book: Book, name: str, *pools: str, space: str = "s", geometry: str = "g") -> None:
    book.join(
        name,
        Join(ME, space, geometry, SIZE, tuple(PoolRecord(pool, (ME,), b"about " + pool.encode()) for pool in pools)),
    )


def offer(
    book: Book,
    name: str,
    pool: str,
    tokens: list[int],
    slots: list[int],
    generation: int = 1,
    tenant: str = "",
    first: int = 0,
) -> None:
    data = np.asarray(tokens, np.int32).tobytes()
    book.offer(name, OfferBlocks(pool, tenant, data, first, tuple(slots), 1, (generation,) * len(slots)))


def match(
    book: Book,
    name: str,
    tokens: list[int],
    first: int = 0,
    without: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
    tenant: str = "",
):
    return book.match(name, Match(1, tenant, np.asarray(tokens, np.int32).tobytes(), first, without, known))


def found(book: Book, name: str, tokens: list[int], **more) -> list[tuple[str, int, int]]:
    runs, _ = match(book, name, tokens, **more)
    return [
        (run.pool, slot, generation)
        for run in runs
        for slot, generation in zip(run.slots, run.generations, strict=True)
    ]


@pytest.fixture
def book():
    made = Book()
    join(made, "a", "pa", "pa2")
    join(made, "b", "pb")
    return made


def test_offer_and_match(book):
    offer(book, "a", "pa", [1, 2, 3, 4], [7, 8])
    assert found(book, "b", [1, 2, 3, 4, 5, 6]) == [("pa", 7, 1), ("pa", 8, 1)]
    assert found(book, "b", [1, 2, 9, 9]) == [("pa", 7, 1)]
    assert found(book, "b", [1, 2, 3, 4], first=1) == [("pa", 8, 1)]
    assert found(book, "b", [1, 2, 3, 4], without=("pa",)) == []
    assert book.blocks == 2


def test_pools_are_described_once(book):
    offer(book, "a", "pa", [1, 2], [7])
    assert [record.description for record in match(book, "b", [1, 2])[1]] == [b"about pa"]
    assert match(book, "b", [1, 2], known=("pa",))[1] == ()


def test_spaces_and_tenants_are_apart(book):
    join(book, "c", "pc", space="other", geometry="other")
    offer(book, "a", "pa", [1, 2], [7])
    assert found(book, "c", [1, 2]) == []
    assert found(book, "b", [1, 2], tenant="t") == []
    offer(book, "b", "pb", [1, 2], [3], tenant="t")
    assert found(book, "a", [1, 2], tenant="t") == [("pb", 3, 1)]


def test_the_pool_of_the_block_before_is_preferred(book):
    offer(book, "a", "pa", [1, 2, 3, 4, 5, 6], [0, 1, 2])
    offer(book, "b", "pb", [1, 2, 3, 4], [0, 1])
    assert found(book, "b", [1, 2, 3, 4, 5, 6]) == [("pb", 0, 1), ("pb", 1, 1), ("pa", 2, 1)]
    assert found(book, "b", [1, 2, 3, 4, 5, 6], without=("pb",)) == [("pa", slot, 1) for slot in range(3)]


def test_a_slot_stands_for_its_newest_offer_only(book):
    offer(book, "a", "pa", [1, 2, 3, 4], [7, 8])
    offer(book, "a", "pa", [5, 6], [7], generation=2)
    assert found(book, "b", [1, 2, 3, 4]) == []
    assert found(book, "b", [5, 6]) == [("pa", 7, 2)]
    with pytest.raises(MessageError, match="older"):
        offer(book, "a", "pa", [1, 2], [7], generation=1)
    assert found(book, "b", [5, 6]) == [("pa", 7, 2)]


def test_retire_and_leave(book):
    offer(book, "a", "pa", [1, 2, 3, 4, 5, 6], [0, 1, 2])
    offer(book, "a", "pa2", [1, 2], [9])
    book.retire("a", "pa", [1, 77])
    assert len(found(book, "b", [1, 2, 3, 4, 5, 6])) == 1
    book.retire("a", "pa", None)
    assert found(book, "b", [1, 2]) == [("pa2", 9, 1)]
    assert book.leave("a") == ("pa", "pa2")
    assert found(book, "b", [1, 2]) == []
    assert book.blocks == 0
    assert book.leave("a") == ()


@pytest.mark.parametrize(
    "bad",
    [
        {"pool": "pb"},
        {"pool": "nobody's"},
        {"tokens": [1, 2, 3]},
        {"tokens": [1, 2]},
        {"slots": [4, 4]},
        {"first": 1},
    ],
)
def test_bad_offers_change_nothing(book, bad):
    offer(book, "a", "pa", [8, 8], [1])
    with pytest.raises(MessageError):
        offer(book, "a", **{"pool": "pa", "tokens": [1, 2, 3, 4], "slots": [1, 2], "generation": 5, **bad})
    assert found(book, "b", [8, 8]) == [("pa", 1, 1)]
    assert book.blocks == 1


def test_strangers_and_bad_tokens(book):
    with pytest.raises(MessageError, match="joined"):
        match(book, "nobody", [1, 2])
    with pytest.raises(MessageError, match="32-bit"):
        book.match("a", Match(1, "", b"123", 0, (), ()))


def test_joining_twice_or_with_another_geometry(book):
    with pytest.raises(RefusedError, match="joined already"):
        join(book, "c", "pa")
    with pytest.raises(LayoutError, match="fingerprint"):
        join(book, "c", "pc", geometry="another")
    assert "c" not in book.members


def test_random_offers_against_a_plain_list():
    """Whatever is put up, retired and left, a match is the longest prefix of blocks that somebody offers."""
    chance, book, truth = random.Random(3), Book(), {}
    members = ["a", "b", "c"]
    for name in members:
        join(book, name, "p" + name)
    for generation in range(1, 601):
        name, tokens = chance.choice(members), [chance.randrange(2) for _ in range(2 * chance.randrange(1, 6))]
        if chance.random() < 0.6:
            slots = chance.sample(range(12), len(tokens) // 2)
            offer(book, name, "p" + name, tokens, slots, generation)
            truth = {key: block for key, block in truth.items() if key[0] != name or key[1] not in slots}
            truth |= {(name, slot): tuple(tokens[: 2 * (at + 1)]) for at, slot in enumerate(slots)}
        else:
            slots = chance.sample(range(12), 4)
            book.retire(name, "p" + name, slots)
            truth = {key: block for key, block in truth.items() if key[0] != name or key[1] not in slots}
        query, offered = [chance.randrange(2) for _ in range(10)], set(truth.values())
        longest = next((n for n in range(5) if tuple(query[: 2 * (n + 1)]) not in offered), 5)
        result = found(book, chance.choice(members), query)
        assert len(result) == longest
        assert all(truth[pool[1:], slot] == tuple(query[: 2 * (at + 1)]) for at, (pool, slot, _) in enumerate(result))
        assert book.blocks == len(offered)


def test_a_process_that_heard_no_answer_may_join_again(book):
    again = Join(ME, "s", "g", SIZE, (PoolRecord("pa", (ME,), b""), PoolRecord("pa2", (ME,), b"")))
    assert book.former(again) == "a"
    stranger = Process(2, 2, 1)
    assert book.former(Join(stranger, "s", "g", SIZE, again.pools)) is None
