"""The stream and the replicas it keeps current: whatever is lost on the way, a replica ends up with all that stands."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kvmarket.registry.messages import Changes, PoolGone, PoolJoined, Reply, Retire, Snapshot
from kvmarket.registry.offering import Offering
from kvmarket.registry.replica import SLICE_BLOCKS, Replica
from kvmarket.registry.space import Space
from kvmarket.registry.stream import SNAPSHOT_BYTES, Stream
from tests.registry.test_space import SIZE, found, record


def offering(pool: str, tokens: list[int], slots: list[int], generation: int = 1) -> Offering:
    generations = np.full(len(slots), generation, np.uint64)
    return Offering(pool, "", np.array(tokens, np.int32), 0, np.array(slots, np.int64), 1, generations, None)


class Net:
    """A stream and its listeners; what is sent to a route in `deaf` is refused, as by a full pipe."""

    def __init__(self) -> None:
        self.stream, self.truth = Stream(), Space(SIZE)
        self.replicas: dict[bytes, Replica] = {}
        self.deaf: set[bytes] = set()
        self.wanting: list[bytes] = []
        self.most = 10**9  # messages that go through before the pipe is full

    def send(self, route: bytes, reply: Reply) -> bool:
        self.most -= 1
        if route in self.deaf or self.most < 0:
            return False
        assert isinstance(reply, Changes | Snapshot)
        if not self.replicas[route].receive(reply):
            self.wanting.append(route)
        return True

    def join(self, route: bytes, *own: str) -> Replica:
        for pool in own:
            self.truth.add_pool(record(pool, 5000))
            self.stream.add(PoolJoined(record(pool, 5000)))
        self.replicas[route] = Replica(SIZE, own)
        self.sync(route)
        return self.replicas[route]

    def sync(self, route: bytes) -> None:
        self.stream.welcome(route, self.truth.changes(), self.send)

    def offer(self, *arguments) -> None:
        self.truth.offer(offering(*arguments))
        self.stream.add(offering(*arguments).message())

    def settle(self) -> None:
        for _ in range(4):
            self.stream.flush(self.send)
            while self.wanting:
                self.sync(self.wanting.pop())
        for replica in self.replicas.values():
            drain(replica)


def drain(replica: Replica) -> list[str]:
    gone = []
    while replica.pending:
        gone += replica.step()
    return gone


@pytest.fixture
def net():
    made = Net()
    made.join(b"a", "pa")
    return made


def test_what_stands_and_what_comes(net):
    net.offer("pa", [1, 2, 3, 4], [0, 1])
    late = net.join(b"b", "pb")
    net.offer("pa", [1, 2, 9, 9], [0, 2], 2)
    net.settle()
    assert found(late.space, [1, 2, 9, 9]) == [("pa", 0, 2), ("pa", 2, 2)]
    assert found(late.space, [1, 2, 3, 4], first=1) == [("pa", 1, 1)]


def test_an_offer_is_put_in_slice_by_slice(net):
    late = net.join(b"b", "pb")
    drain(late)
    blocks = 3 * SLICE_BLOCKS + 5
    tokens = list(range(SIZE * blocks))
    net.offer("pa", tokens, list(range(blocks)))
    net.stream.flush(net.send)
    steps = 0
    while late.pending:
        late.step()
        steps += 1
        assert len(found(late.space, tokens)) == min(steps * SLICE_BLOCKS, blocks)
    assert steps == 4


def test_whole_when_a_snapshot_is_in_whatever_came_since(net):
    net.offer("pa", [1, 2, 3, 4], [0, 1])
    late = net.join(b"b", "pb")
    net.offer("pa", [5, 6], [2])
    net.stream.flush(net.send)
    while not late.whole:
        assert not found(late.space, [1, 2, 3, 4])
        late.step()
    assert late.pending
    assert found(late.space, [1, 2, 3, 4]) == [("pa", 0, 1), ("pa", 1, 1)]


def test_a_pool_that_goes_is_told(net):
    late = net.join(b"b", "pb")
    net.offer("pa", [1, 2], [0])
    net.settle()
    net.truth.drop_pool("pa")
    net.stream.add(PoolGone("pa"))
    net.stream.flush(net.send)
    assert drain(late) == ["pa"]
    assert found(late.space, [1, 2]) == []


def test_who_missed_changes_is_told_and_catches_up(net):
    late = net.join(b"b", "pb")
    net.offer("pa", [5, 6], [7])
    net.settle()
    net.deaf.add(b"b")
    net.offer("pa", [1, 2], [0])
    net.settle()
    net.truth.drop_pool("pa")
    net.stream.add(PoolGone("pa"))
    net.settle()
    assert found(late.space, [5, 6]) == [("pa", 7, 1)], "the old replica goes on answering"
    net.deaf.clear()
    net.stream.flush(net.send)
    assert net.wanting == [b"b"]
    assert not late.synced
    net.sync(net.wanting.pop())
    assert late.synced
    assert drain(late) == ["pa"], "what went meanwhile is told too"
    assert found(late.space, [5, 6]) == []


def test_a_snapshot_that_breaks_off_is_sent_again(net):
    blocks = 100
    for number in range(4):  # each a part of its own
        tokens = np.arange(SNAPSHOT_BYTES // 4, dtype=np.int32) + number
        size = len(tokens) // SIZE
        many = Offering(
            "pa", "", tokens, size - blocks, np.arange(blocks) + blocks * number, 1, np.ones(blocks, np.uint64), None
        )
        net.truth.offer(many)
    late = net.replicas[b"b"] = Replica(SIZE, ())
    net.most = 2
    net.sync(b"b")
    assert not late.synced
    net.most = 10**9
    net.settle()
    assert late.synced
    assert late.space.blocks == net.truth.blocks == 4 * blocks


def test_own_offers_need_no_service(net):
    mine = net.replicas[b"a"]
    net.settle()
    mine.add(offering("pa", [1, 2, 3, 4], [0, 1]).message())
    drain(mine)
    assert found(mine.space, [1, 2, 3, 4]) == [("pa", 0, 1), ("pa", 1, 1)]
    mine.add(Retire("pa", np.array([1]).tobytes()))
    mine.add(offering("pa", [1, 2, 9, 9], [0, 1], 2).message())
    drain(mine)
    net.stream.add(Retire("pa", None))  # the echo of something from before
    net.settle()
    assert found(mine.space, [1, 2, 9, 9]) == [("pa", 0, 2), ("pa", 1, 2)]
    net.sync(b"a")  # the service has not heard of any of it
    drain(mine)
    assert found(mine.space, [1, 2, 9, 9]) == [("pa", 0, 2), ("pa", 1, 2)], "a snapshot does not undo it"


def test_nonsense_from_the_service_is_passed_over(net):
    late = net.join(b"b", "pb")
    net.settle()
    net.stream.add(offering("unknown", [1, 2], [0]).message())
    net.stream.add(offering("pa", [1, 2], [4999_0]).message())
    net.stream.add(Retire("pa", b"123"))
    net.offer("pa", [1, 2], [0])
    net.settle()
    assert found(late.space, [1, 2]) == [("pa", 0, 1)]


def test_random_losses():
    """Pipes that fill up at random: when they are read again, every replica has exactly what stands."""
    chance, net = random.Random(7), Net()
    net.join(b"a", "pa")
    net.join(b"b", "pb")
    reader = net.join(b"c", "pc")
    for generation in range(1, 400):
        pool = chance.choice(["pa", "pb"])
        tokens = [chance.randrange(2) for _ in range(SIZE * chance.randrange(1, 5))]
        slots = chance.sample(range(10), len(tokens) // SIZE)
        if chance.random() < 0.7:
            net.offer(pool, tokens, slots, generation)
        else:
            net.truth.retire(pool, np.array(slots))
            net.stream.add(Retire(pool, np.array(slots).tobytes()))
        net.deaf = {b"c"} if chance.random() < 0.3 else set()
        if chance.random() < 0.5:
            net.stream.flush(net.send)
        if chance.random() < 0.3 and b"c" in net.wanting:
            net.wanting.remove(b"c")
            net.sync(b"c")
        if chance.random() < 0.5 and reader.pending:
            reader.step()
    net.deaf = set()
    net.settle()
    for pool in ("pa", "pb"):
        assert reader.space.pools[pool].standing().tolist() == net.truth.pools[pool].standing().tolist()
        assert reader.space.pools[pool].generations.tolist() == net.truth.pools[pool].generations.tolist()
    assert reader.space.blocks == net.truth.blocks
