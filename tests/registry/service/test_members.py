"""The members of a market: who is a member, what is his, and that bad requests change nothing."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from kvmarket.errors import LayoutError, MessageError, RefusedError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import (
    MAX_MESSAGE_BYTES,
    MAX_POOLS,
    Change,
    Join,
    News,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    PoolRecord,
    PoolTold,
    Retire,
    Snapshot,
    SnapshotEnd,
    pack_message,
)
from kvmarket.registry.protocol.status import (
    MAX_FACT_NAME,
    MAX_FACT_TEXT,
    MAX_FACTS,
    Fact,
    Label,
    OtherSpace,
    OtherSpaces,
    Report,
    Status,
)
from kvmarket.registry.service.members import MOST_DESCRIBED, MOST_EXPLAINED, MOST_NAMED, Members
from kvmarket.registry.space.space import Space

ME = Process(1, 1, 1)


def joining(*pools: str, space: str = "s", geometry: str = "g", process: Process = ME) -> Join:
    return Join(process, space, geometry, 2, tuple(PoolRecord(pool, 16, (ME,), b"") for pool in pools))


def offered(pool: str) -> OfferBlocks:
    return OfferBlocks(pool, "", bytes(8), 0, bytes(8), 1, np.array([1], np.uint64).tobytes())


def hear(members: Members, name: str, news: News) -> list[Change]:
    return list(members.hear(name, news))


def offer(members: Members, name: str, pool: str) -> None:
    assert hear(members, name, offered(pool)) == [offered(pool)]


@pytest.fixture
def members():
    made = Members()
    made.join("a", joining("pa", "pa2"))
    made.join("b", joining("pb"))
    return made


def test_members_of_one_space_share_it(members):
    members.join("c", joining("pc", space="other", geometry="other"))
    assert members.by_name["a"].space is members.by_name["b"].space
    assert members.by_name["c"].space is not members.by_name["a"].space
    offer(members, "a", "pa")
    offer(members, "c", "pc")
    assert members.blocks == 2
    assert [(row.pools, row.offers) for row in members.status()] == [(2, 1), (1, 0), (1, 1)]


def test_only_the_owner_offers_and_retires(members):
    for name, pool in (("a", "pb"), ("b", "pa"), ("a", "unknown")):
        for news in (offered(pool), Retire(pool, None), Snapshot(("",), (pool,), b"", b"", b""), SnapshotEnd((pool,))):
            with pytest.raises(MessageError, match="not one of this engine"):
                hear(members, name, news)
    assert members.blocks == 0


def test_retire_and_leave(members):
    offer(members, "a", "pa")
    offer(members, "b", "pb")
    retired = Retire("pb", np.array([0]).tobytes())
    assert hear(members, "b", retired) == [retired]
    with pytest.raises(MessageError):
        hear(members, "a", Retire("pa", b"123"))
    assert [row.offers for row in members.status()] == [1, 0]
    left = members.leave("a")
    assert left is not None
    assert [record.pool for record in left.pools] == ["pa", "pa2"]
    assert members.leave("a") is None
    space = members.by_name["b"].space
    assert space.collecting and members.collect(0.0), "no time to do any of it"
    assert not members.collect(1.0)
    assert members.blocks == 0 and members.spaces == {"s": space}, "who is left goes on in it"
    members.leave("b")
    assert members.spaces == {}
    members.join("d", joining("pa", geometry="another"))


def test_what_has_nothing_to_collect_is_not_asked_to(members, monkeypatch):
    monkeypatch.setattr(Space, "collect", lambda space: pytest.fail("there is nothing"))
    assert not members.collect(0.01)


def test_a_space_whose_last_member_has_left_is_collected_little_by_little(members):
    for name in ("a", "b"):
        offer(members, name, f"p{name}")
    space = members.by_name["a"].space
    for name in list(members.by_name):
        members.leave(name)
    assert members.spaces == {} and space.collecting
    assert members.collect(0.0), "no time to do any of it"
    assert not members.collect(1.0)
    assert not space.collecting and len(space.trie) == 0 and not members.collect(1.0)


def test_joining_twice_or_with_another_geometry(members):
    for bad in (joining("pa"), joining("new", "new")):
        with pytest.raises(RefusedError, match="joined already"):
            members.join("c", bad)
    with pytest.raises(LayoutError, match="fingerprint"):
        members.join("c", joining("pc", geometry="another"))
    assert "c" not in members.by_name


def test_a_process_that_heard_no_answer_may_join_again(members):
    assert members.former(joining("pa", "pa2")) == "a"
    assert members.former(joining("pa", process=Process(2, 2, 1))) is None
    assert members.former(joining("new")) is None


def test_what_a_snapshot_does_not_tell_again_goes(members):
    """And the others hear when all of a pool has been told for the first time, and of what went."""
    offer(members, "a", "pa")
    assert hear(members, "a", SnapshotEnd(("pa", "pa2"))) == [PoolTold("pa"), PoolTold("pa2")]
    assert members.blocks == 1, "no snapshot had begun"
    members.begin("a")
    assert members.telling("a")
    offer(members, "a", "pa")
    assert hear(members, "a", SnapshotEnd(("pa", "pa2"))) == []
    members.begin("a")
    assert hear(members, "a", SnapshotEnd(("pa", "pa2"))) == [Retire("pa", np.array([0]).tobytes())]
    assert not members.telling("a")
    assert members.blocks == 0


def test_branches_that_stand_already_are_passed_on_until_all_of_a_pool_was_told(members):
    """Whoever knows them of a service before needs to hear that they stand."""
    offer(members, "a", "pa")
    stands = Snapshot(("",), ("pa",), np.array([0, 0, 1, 1]).tobytes(), bytes(8), np.array([0, 0, 0, 1, 1]).tobytes())
    assert hear(members, "a", stands) == [stands]
    hear(members, "a", SnapshotEnd(("pa", "pa2")))
    assert hear(members, "a", stands) == []
    fresh = Snapshot(("",), ("pa",), np.array([0, 0, 1, 1]).tobytes(), bytes(8), np.array([0, 0, 0, 1, 2]).tobytes())
    assert hear(members, "a", fresh) == [fresh]


def test_what_engines_tell_of_themselves_is_in_the_status(members):
    """The facts once a space, and only where they were asked for; of the reports the last."""
    fact, label = Fact("dtype", "float16", bytes(8)), Label("model", 8000)
    told = msgspec.structs.replace(joining("pd", space="told"), facts=(fact,), label=label)
    members.join("d", told)
    members.join("e", msgspec.structs.replace(told, pools=joining("pe").pools, label=Label("another")))
    members.report("d", Report({"bytes_fetched": 1}))
    members.report("d", Report({"bytes_fetched": 2}))
    rows = {row.label: row.counters for row in members.status() if row.space == "told"}
    assert rows == {label: {"bytes_fetched": 2}, Label("another"): {}}
    assert [space.facts for space in members.told_spaces(facts=True) if space.name == "told"] == [(fact,)]
    assert not any(space.facts for space in members.told_spaces(facts=False))
    members.leave("d")
    members.join("d", joining("pd"))
    assert not any(row.counters for row in members.status()), "what another engine had reported"


def test_facts_are_told_of_so_many_spaces_that_the_answer_can_be_sent():
    members, most = Members(), (Fact("\U00012000" * MAX_FACT_NAME, "\U00012000" * MAX_FACT_TEXT, bytes(8)),) * MAX_FACTS
    for number in range(MOST_DESCRIBED + 3):
        name = str(number)
        members.join(name, msgspec.structs.replace(joining(name, space=name), facts=most))
    spaces = members.told_spaces(facts=True)
    assert [bool(space.facts) for space in spaces] == [True] * MOST_DESCRIBED + [False] * 3
    assert len(pack_message(Status(ME, members.status(), 0, {}, spaces))) < MAX_MESSAGE_BYTES


def test_of_other_spaces_few_are_told_with_those_of_the_same_model_first():
    members, fact = Members(), Fact("dtype", "float16", bytes(8))
    assert members.other_spaces("") == OtherSpaces((), 0)
    for number in range(2 * MOST_NAMED):
        name, label = f"s{number}", Label(f"m{number % 7}", number)
        told = msgspec.structs.replace(joining(f"p{number}", space=name), facts=(fact,), label=label)
        members.join(name, told)
    members.join("second", joining("another", space="s7"))
    found = members.other_spaces("s0")
    assert found.total == 2 * MOST_NAMED - 1 and len(found.spaces) == MOST_NAMED
    like = -(-(2 * MOST_NAMED) // 7) - 1
    assert [space.label.model == "m0" for space in found.spaces] == [True] * like + [False] * (MOST_NAMED - like)
    assert [space.facts for space in found.spaces] == [(fact,)] * MOST_EXPLAINED + [()] * (MOST_NAMED - MOST_EXPLAINED)
    assert found.spaces[0] == OtherSpace("s7", ME.pid, Label("m0", 7), (fact,)), "by who was there first"
    members.leave("s7")
    assert members.other_spaces("s0").spaces[0].name == "s14" and members.other_spaces("s0").total == found.total
    members.leave("second")
    assert members.other_spaces("s0").total == found.total - 1


def test_the_answer_about_other_spaces_can_be_sent():
    members, most = Members(), (Fact("\U00012000" * MAX_FACT_NAME, "\U00012000" * MAX_FACT_TEXT, bytes(8)),) * MAX_FACTS
    for number in range(MOST_DESCRIBED):
        members.join(str(number), msgspec.structs.replace(joining(str(number), space=str(number)), facts=most))
    assert len(pack_message(members.other_spaces("nobody's"))) < 1 << 21


def test_a_member_adds_a_pool_and_drops_it_again(members):
    new = PoolRecord("new", 16, (ME,), b"about it")
    assert hear(members, "a", PoolJoined(new)) == [PoolJoined(new)]
    assert hear(members, "a", PoolJoined(new)) == [], "it is told again in a snapshot"
    offer(members, "a", "new")
    assert members.owner("new") == "a" and members.status()[0].pools == 3
    assert hear(members, "a", PoolGone("new")) == [PoolGone("new")]
    members.collect(1.0)
    assert members.owner("new") is None and members.blocks == 0
    with pytest.raises(MessageError, match="not one of this engine"):
        offer(members, "a", "new")
    assert members.leave("a").pools == joining("pa", "pa2").pools


def test_a_pool_that_a_snapshot_does_not_name_is_gone(members):
    hear(members, "a", PoolJoined(PoolRecord("new", 16, (ME,), b"")))
    members.begin("a")
    changes = hear(members, "a", SnapshotEnd(("pa", "new")))
    assert changes == [PoolTold("pa"), PoolGone("pa2")]
    assert members.former(joining("pa2")) is None and members.former(joining("new")) == "a"


@pytest.mark.parametrize("wrong", ["another's", "of another process", "one too many"])
def test_a_pool_that_may_not_be_added_changes_nothing(members, wrong):
    record = PoolRecord("pb" if wrong == "another's" else "new", 16, (ME,), b"")
    if wrong == "of another process":
        record = msgspec.structs.replace(record, processes=(ME, Process(2, 2, 1)))
    for number in range(MAX_POOLS - 2 if wrong == "one too many" else 0):
        hear(members, "a", PoolJoined(PoolRecord(f"p{number}", 16, (ME,), b"")))
    before = members.status()
    with pytest.raises(MessageError, match="another's"):
        hear(members, "a", PoolJoined(record))
    assert members.status() == before and members.owner("pb") == "b"
