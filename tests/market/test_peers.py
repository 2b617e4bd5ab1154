"""The pools of others: what is dead in one of them is not found, nor what lies behind it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from kvmarket import PagedCache, counters
from kvmarket.market.data import DataHalf
from kvmarket.market.offer import Stage
from kvmarket.market.own_pool import OwnPool
from kvmarket.market.peers import DEAD_POOLS, Peers
from kvmarket.processes import shared_file
from kvmarket.processes.shared_file import Process, pid_namespace
from kvmarket.registry.space.standing import Run
from tests.scarcity import no_descriptors


class Owner:
    """An engine's pool, and what it has on offer."""

    def __init__(self) -> None:
        self.half = DataHalf(PagedCache([torch.zeros(16, 2, 4, 8)], block_size=4))
        self.pool = OwnPool([Stage(self.half.cache.layout, (self.half.memory,))])
        self.record = self.pool.record()

    def run(self, *slots: int) -> Run:
        """An offer of consecutive blocks in these slots, as they are now."""
        ids = np.array(slots)
        return Run(self.pool.id, self.pool.generations.epoch, ids, self.pool.generations.read(ids), None)

    def retire(self, slot: int) -> None:
        self.pool.generations.raise_slots(np.array([slot]))

    def close(self) -> None:
        self.pool.close()
        self.half.close()


@pytest.fixture
def owners():
    made = [Owner(), Owner()]
    yield made
    for owner in made:
        owner.close()


@pytest.fixture
def told():
    return {"unreadable": [], "scarce": []}


@pytest.fixture
def peers(told):
    made = Peers(told["unreadable"].append, told["scarce"].append, lambda _pool: None)
    yield made
    made.close()


def counted(name: str) -> int:
    return sum(n for key, n in counters.snapshot().items() if key.startswith(name))


def slots_found(found) -> list[list[int]]:
    return [offers.slots.tolist() for offers in found[0]]


def leading(peers, runs, records):
    """Of a match that finds these, and nothing else behind a dead block."""
    return peers.leading(lambda at, without: ([], []) if without else (runs, records), 0, ())


def test_what_lies_behind_a_dead_block_is_not_found(owners, peers):
    one, two = owners
    runs, records = [one.run(0, 1, 2), two.run(5, 6), one.run(3)], [one.record, two.record, one.record]
    assert slots_found(leading(peers, runs, records)) == [[0, 1, 2], [5, 6], [3]]
    assert set(leading(peers, runs, records)[1]) == {one.pool.id, two.pool.id}
    two.retire(6)
    assert slots_found(leading(peers, runs, records)) == [[0, 1, 2], [5]]
    two.retire(5)
    assert slots_found(leading(peers, runs, records)) == [[0, 1, 2]]
    assert set(leading(peers, runs, records)[1]) == {one.pool.id}, "no pool without a block"
    one.retire(1)
    assert slots_found(leading(peers, runs, records)) == [[0]]
    one.retire(0)
    assert leading(peers, runs, records) == ([], {})


def test_behind_a_dead_block_another_pool_is_asked_for(owners, peers):
    """Whoever retired it has not been heard of yet, say; what others have of the same prompt counts all the same."""
    one, two = owners
    asked, told = [], [(owner.record, owner.run(*range(5))) for owner in owners]

    def match(at, without):
        asked.append((at, set(without)))
        for record, run in told:
            if record.pool not in without:
                return [run._replace(slots=run.slots[at:], generations=run.generations[at:])], [record]
        return [], []

    assert slots_found(peers.leading(match, 0, ())) == [[0, 1, 2, 3, 4]] and asked == [(0, set())]
    one.retire(2)
    assert slots_found(peers.leading(match, 0, ())) == [[0, 1], [2, 3, 4]]
    two.retire(3)
    assert slots_found(peers.leading(match, 0, ())) == [[0, 1], [2]]
    assert asked[-1] == (3, {one.pool.id, two.pool.id})
    assert slots_found(peers.leading(match, 0, {one.pool.id})) == [[0, 1, 2]]


def test_a_match_looks_behind_few_dead_pools(peers):
    asked, owners = [], [Owner() for _ in range(DEAD_POOLS + 2)]
    runs = [owner.run(0) for owner in owners]
    for owner in owners:
        owner.retire(0)

    def match(at, without):
        asked.append(without)
        return [runs[len(without)]], [owners[len(without)].record]

    assert peers.leading(match, 0, ()) == ([], {})
    assert len(asked) == 1 + DEAD_POOLS and len(asked[-1]) == DEAD_POOLS
    for owner in owners:
        owner.close()


def test_another_epoch_is_dead(owners, peers):
    one, two = owners
    runs, records = [one.run(0), two.run(1)], [one.record, two.record]
    two.pool.generations.raise_epoch()
    assert slots_found(leading(peers, runs, records)) == [[0]]


def test_a_pool_that_cannot_be_read_ends_the_hit(owners, peers, told):
    one, two = owners
    lies = msgspec.structs.replace(two.record, description=b"nonsense")
    before = counted("pool_unreachable")
    runs = [one.run(0), two.run(1), one.run(2)]
    assert slots_found(leading(peers, runs, [one.record, lies, one.record])) == [[0]]
    assert told == {"unreadable": [two.pool.id], "scarce": []}
    assert counted("pool_unreachable") == before + 1


@pytest.mark.parametrize("lie", [{"pool": "another"}, {"slots": 17}])
def test_a_record_that_does_not_fit_its_description(owners, peers, told, lie):
    record = msgspec.structs.replace(owners[0].record, **lie)
    assert peers.of(record) is None
    assert told["unreadable"] == [record.pool]


def test_a_pool_that_is_met_is_met_once(owners, peers):
    one, two = owners
    assert peers.met() == ()
    met = peers.of(one.record)
    assert met is not None and peers.of(one.record) is met
    peers.of(two.record)
    assert set(peers.met()) == {one.pool.id, two.pool.id}
    peers.forget([one.pool.id, "nobody"])
    assert peers.met() == (two.pool.id,)
    assert peers.of(one.record) is not met


def test_want_of_descriptors_is_told_apart(owners, peers, told):
    before = counted("pool_passed_over")
    with no_descriptors():
        assert peers.of(owners[0].record) is None
    assert told == {"unreadable": [], "scarce": [owners[0].pool.id]}
    assert counted("pool_passed_over") == before + 1
    assert peers.of(owners[0].record) is not None


def test_nobody_need_hear_of_it(owners):
    peers = Peers(lambda _pool: None, lambda _pool: None, lambda _pool: None)
    with no_descriptors():
        assert peers.of(owners[0].record) is None


def test_closed_it_tells_nobody(owners, peers, told):
    peers.of(owners[0].record)
    peers.close()
    assert peers.met() == ()
    assert peers.of(msgspec.structs.replace(owners[1].record, description=b"")) is None
    with no_descriptors():
        assert peers.of(owners[1].record) is None
    assert told == {"unreadable": [], "scarce": []}


def test_a_pool_elsewhere_is_met_when_its_memory_has_come(owners, told, monkeypatch):
    """Until then it is passed over for a moment, not for good."""
    (owner, _), held = owners, {}
    runs, records = [owner.run(0, 1)], [owner.record]
    peers = Peers(told["unreadable"].append, told["scarce"].append, held.get)
    here = pid_namespace()
    monkeypatch.setattr(shared_file, "pid_namespace", lambda: here + 1)  # we are elsewhere, so to speak
    me = msgspec.structs.replace(Process.current(), namespace=here + 1)
    monkeypatch.setattr(Process, "current", classmethod(lambda _cls: me))
    assert slots_found(leading(peers, runs, records)) == []
    assert told == {"unreadable": [], "scarce": [owner.pool.id]}
    files = owner.pool.descriptor.files
    held[owner.pool.id] = tuple(file.fd for file in files)
    found, pools = leading(peers, runs, records)
    assert [offers.slots.tolist() for offers in found] == [[0, 1]]
    descriptor = pools[owner.pool.id]
    assert len(files) == 2 and [file.through for file in descriptor.files] == [me, me]
    assert [msgspec.structs.replace(file, through=None) for file in descriptor.files] == list(files)
    peers.close()
    held[owner.pool.id] += (0,)
    again = Peers(told["unreadable"].append, told["scarce"].append, held.get)
    assert slots_found(leading(again, runs, records)) == [] and told["unreadable"] == [owner.pool.id], "one too many"
    again.close()
