"""A replica: it has what it was told, keeps it until a new service has told all, and passes over nonsense."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from kvmarket import counters
from kvmarket.processes.shared_file import Process
from kvmarket.registry.client.replica import ABSENT_SECONDS, Replica
from kvmarket.registry.protocol.messages import (
    Before,
    Changes,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    PoolTold,
    Promise,
    Retire,
    Snapshot,
    SnapshotEnd,
)
from kvmarket.registry.space.news import SLICE_BLOCKS
from kvmarket.registry.space.snapshot import SnapshotParts
from kvmarket.registry.space.space import Space
from tests.registry.space.test_space import SIZE, found, made, offer, record
from tests.sleepers import Sleeper


def offering(
    pool: str, tokens: list[int], slots: list[int], generation: int = 1, before: Before | None = None, first: int = 0
) -> OfferBlocks:
    generations, data = np.full(len(slots), generation, np.uint64), np.array(tokens, np.int32).tobytes()
    return OfferBlocks(
        pool, "", data, first, np.array(slots, np.int64).tobytes(), 1, generations.tobytes(), before=before
    )


def branches(space: Space) -> list[Snapshot]:
    parts, told = SnapshotParts([space]), []
    while not parts.done:
        told += [change for change in parts.part() if isinstance(change, Snapshot)]
    return told


class Told:
    """A replica that owns "mine", and how it is told."""

    def __init__(self) -> None:
        self.replica = Replica(SIZE, (record("mine"),))
        self.gone: list[str] = []

    def tell(self, *changes, snapshot: bool = False) -> None:
        self.replica.receive(Changes(0, changes, snapshot))
        self.drain()

    def drain(self) -> int:
        steps = 0
        while self.replica.pending:
            self.gone += self.replica.step()
            steps += 1
        return steps

    def found(self, tokens: list[int]):
        return found(self.replica.space, tokens)


@pytest.fixture
def told():
    made = Told()
    made.tell(PoolJoined(record("pa")), SnapshotEnd(("pa",)), snapshot=True)
    return made


def test_whole_when_a_snapshot_has_ended():
    told = Told()
    assert not told.replica.whole
    told.tell(PoolJoined(record("pa")), offering("pa", [1, 2], [0]), snapshot=True)
    assert not told.replica.whole
    told.tell(SnapshotEnd(("pa",)))
    assert told.replica.whole
    assert told.found([1, 2]) == [("pa", 0, 1)]


def test_an_offer_is_put_in_slice_by_slice(told):
    told.tell(PoolJoined(msgspec.structs.replace(record("pb"), slots=5000)))
    blocks = 3 * SLICE_BLOCKS + 5
    tokens = list(range(SIZE * blocks))
    told.replica.receive(Changes(0, (offering("pb", tokens, list(range(blocks))),)))
    seen = []
    while told.replica.pending:
        told.replica.step()
        seen.append(len(told.found(tokens)))
    assert sorted(set(seen)) == [0, *(SLICE_BLOCKS * n for n in (1, 2, 3)), blocks]


def test_a_snapshot_takes_away_what_it_does_not_tell(told):
    told.tell(PoolJoined(record("pb")), offering("pa", [1, 2], [0]), offering("pa", [5, 6], [1]))
    told.tell(PoolJoined(record("pa")), offering("pa", [1, 2], [0]), snapshot=True)
    assert told.found([5, 6]) == [("pa", 1, 1)], "until the snapshot ends"
    told.tell(SnapshotEnd(("pa",)))
    assert told.found([5, 6]) == []
    assert told.found([1, 2]) == [("pa", 0, 1)]
    assert told.gone == ["pb"], "a pool that was not told of"


def test_of_a_pool_whose_engine_still_tells_nothing_goes_before_all_is_told(told):
    told.tell(offering("pa", [1, 2], [0]), offering("pa", [5, 6], [1]))
    told.tell(PoolJoined(record("pa")), SnapshotEnd(()), snapshot=True)
    assert told.found([5, 6]) == [("pa", 1, 1)]
    told.tell(offering("pa", [1, 2], [0]), PoolTold("pa"))
    assert told.found([5, 6]) == []
    assert told.found([1, 2]) == [("pa", 0, 1)]


def test_a_snapshot_that_breaks_off_begins_anew(told):
    told.tell(offering("pa", [1, 2], [0]), offering("pa", [5, 6], [1]))
    told.tell(PoolJoined(record("pa")), offering("pa", [5, 6], [1]), snapshot=True)
    told.tell(PoolJoined(record("pa")), offering("pa", [1, 2], [0]), SnapshotEnd(("pa",)), snapshot=True)
    assert told.found([5, 6]) == []


def test_branches_of_a_snapshot(told):
    space = made("pa")
    for slot in range(40):
        offer(space, "pa", [1, 2, slot, slot], [50, slot], generation=slot + 1)
    told.tell(*branches(space))
    assert told.found([1, 2, 33, 33]) == [("pa", 50, 40), ("pa", 33, 34)]


def test_a_new_service_knows_only_who_has_joined_it(told):
    """Whoever lives comes back; what it offered counts on until it has told all again."""
    told.tell(PoolJoined(record("pb")), offering("pa", [1, 2], [0]), offering("pb", [3, 4], [0]))
    told.replica.rejoin(100.0)
    assert not told.replica.whole
    told.tell(PoolJoined(record("pa")), SnapshotEnd(()), snapshot=True)
    assert told.replica.whole
    assert told.found([1, 2]) and told.found([3, 4])
    assert not told.gone
    told.tell(PoolJoined(record("pb")), PoolTold("pb"))
    assert told.found([3, 4]) == []
    assert told.replica.expired(100.0 + 2 * ABSENT_SECONDS) == []


def test_who_does_not_come_back_has_gone(told, monkeypatch):
    monkeypatch.setattr(Process, "alive", lambda _self: True)
    told.tell(offering("pa", [1, 2], [0]))
    told.replica.rejoin(100.0)
    told.tell(SnapshotEnd(()), snapshot=True)
    assert told.replica.expired(100.0 + ABSENT_SECONDS) == []
    told.tell(SnapshotEnd(()), snapshot=True)
    assert told.found([1, 2]), "another snapshot of the same service says nothing new of it"
    assert told.replica.expired(100.1 + ABSENT_SECONDS) == ["pa"]
    assert told.found([1, 2]) == []
    assert told.replica.expired(1e9) == []


def test_who_died_with_the_service_has_gone_at_once():
    told = Told()
    child = Sleeper()
    theirs = msgspec.structs.replace(record("pa"), processes=(Process.current(), child.known))
    told.tell(PoolJoined(theirs), SnapshotEnd(("pa",)), snapshot=True)
    told.replica.rejoin(100.0)
    told.tell(SnapshotEnd(()), snapshot=True)
    assert told.replica.expired(100.0) == []
    child.kill()
    assert told.replica.expired(100.0) == ["pa"]


def test_a_pool_that_goes_is_told(told):
    told.tell(offering("pa", [1, 2], [0]))
    told.tell(PoolGone("pa"), PoolGone("unknown"), PoolGone("mine"))
    assert told.gone == ["pa"]
    assert told.found([1, 2]) == []
    assert "mine" in told.replica.space.pools


def test_own_offers_need_no_service(told):
    replica = told.replica
    replica.add(offering("mine", [1, 2, 3, 4], [0, 1]))
    told.drain()
    assert told.found([1, 2, 3, 4]) == [("mine", 0, 1), ("mine", 1, 1)]
    replica.add(Retire("mine", np.array([1]).tobytes()))
    replica.add(offering("mine", [1, 2, 9, 9], [0, 1], 2))
    told.drain()
    told.tell(
        Retire("mine", None), offering("mine", [7, 7], [5]), PoolTold("mine")
    )  # the echo of something from before
    assert told.found([1, 2, 9, 9]) == [("mine", 0, 2), ("mine", 1, 2)]
    assert told.found([7, 7]) == []
    told.tell(SnapshotEnd(("mine",)), snapshot=True)
    assert told.found([1, 2, 9, 9]) == [("mine", 0, 2), ("mine", 1, 2)], "a snapshot does not undo it"
    other = made("mine")
    offer(other, "mine", [7, 7], [5])
    told.tell(*branches(other))
    assert told.found([7, 7]) == []


def test_nonsense_from_the_service_is_passed_over(told):
    before = counters.snapshot().get("change_refused{MessageError}", 0)
    told.tell(
        offering("unknown", [1, 2], [0]),
        offering("pa", [1, 2], [4999]),
        Retire("pa", b"123"),
        Promise("unknown", "", bytes(8), 1),
        PoolTold("unknown"),
        Snapshot(("",), ("pa",), b"123", b"", b""),
        SnapshotEnd(("unknown", "pa")),
        offering("pa", [1, 2], [0]),
    )
    assert told.found([1, 2]) == [("pa", 0, 1)]
    assert counters.snapshot()["change_refused{MessageError}"] == before + 5


def test_an_offer_that_comes_before_the_block_it_goes_on_from_is_no_trouble_within_a_snapshot(told):
    """The snapshot comes to it yet. At other times it is counted."""
    early = offering("pa", [3, 4], [1], before=Before(0, 1, 1), first=1)
    name = "change_refused{MissingBlockError}"
    before = counters.snapshot().get(name, 0)
    told.tell(PoolJoined(record("pa")), early, snapshot=True)
    assert counters.snapshot().get(name, 0) == before
    told.tell(offering("pa", [1, 2], [0]), early, SnapshotEnd(("pa",)))
    assert told.found([1, 2, 3, 4]) == [("pa", 0, 1), ("pa", 1, 1)]
    told.tell(offering("pa", [3, 4], [7], before=Before(9, 1, 1), first=1))
    assert counters.snapshot()[name] == before + 1
