"""Messages: what is within their bounds arrives as it was sent, and what is beyond them, or torn, is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kvmarket.errors import MessageError, VersionError
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import (
    MAX_BLOCK_SIZE,
    MAX_SLOTS,
    PROTOCOL,
    Again,
    Before,
    Changes,
    Join,
    OfferBlocks,
    PoolGone,
    PoolRecord,
    Promise,
    Retire,
    Settle,
    Snapshot,
    SnapshotEnd,
    pack_message,
    unpack_request,
)
from kvmarket.registry.protocol.status import (
    MAX_COUNTER_NAME,
    MAX_COUNTERS,
    MAX_FACT_NAME,
    MAX_FACT_TEXT,
    MAX_FACTS,
    MAX_LABEL,
    MAX_NAME,
    AskOtherSpaces,
    AskStatus,
    Fact,
    Label,
    Report,
    report_of,
)

ME = Process(1, 1, 1)


def record(**given: Any) -> PoolRecord:
    return PoolRecord(**{"pool": "p", "slots": 8, "processes": (ME,), "description": b"", **given})


def join(**given: Any) -> Join:
    return Join(**{"process": ME, "space": "s", "geometry": "g", "block_size": 4, "pools": (record(),), **given})


def before(slot: int, epoch: int = 1, generation: int = 1) -> Changes:
    return Changes(1, (OfferBlocks("p", "", b"", 1, bytes(8), 1, bytes(8), b"", Before(slot, epoch, generation)),))


MOST = (1 << 63) - 1
FACT = Fact("name", "text", bytes(8))
WITHIN = [
    join(),
    join(pools=(record(slots=1), record(slots=MAX_SLOTS))),
    join(pools=(record(pool="x" * 64),) * 64),
    join(pools=(record(processes=(ME,) * 1024),)),
    join(block_size=1, space="x" * MAX_NAME, geometry=""),
    join(block_size=MAX_BLOCK_SIZE),
    before(0),
    before(MAX_SLOTS - 1, MOST, MOST),
    Changes(MOST, (PoolGone("p"), Retire("p", None), Retire("p", bytes(8)), Settle("p", 0)), snapshot=True),
    Changes(0, (Snapshot((), (), b"", b"", b""), SnapshotEnd(()), Promise("p", "x" * MAX_NAME, bytes(4), 1))),
    Again(MOST),
    AskStatus(),
    AskStatus(facts=True),
    AskOtherSpaces("x" * MAX_NAME),
    join(facts=(Fact("x" * MAX_FACT_NAME, "x" * MAX_FACT_TEXT, bytes(8)),) * MAX_FACTS),
    join(label=Label("x" * MAX_LABEL, 65535)),
    Report({"x" * MAX_COUNTER_NAME: MOST}),
    Report({str(number): 0 for number in range(MAX_COUNTERS)}),
]
BEYOND = [
    AskOtherSpaces("x" * (MAX_NAME + 1)),
    join(pools=()),
    join(pools=(record(slots=0),)),
    join(pools=(record(slots=MAX_SLOTS + 1),)),
    join(pools=(record(pool=""),)),
    join(pools=(record(pool="x" * 65),)),
    join(pools=(record(processes=()),)),
    join(pools=(record(processes=(ME,) * 1025),)),
    join(pools=(record(),) * 65),
    join(block_size=0),
    join(block_size=MAX_BLOCK_SIZE + 1),
    join(space="x" * (MAX_NAME + 1)),
    before(-1),
    before(MAX_SLOTS),
    before(0, -1),
    before(0, 1, -1),
    before(0, MOST + 1),
    Changes(-1),
    Changes(MOST + 1),
    Changes(1, (PoolGone(""),)),
    Changes(1, (Settle("p", -1),)),
    Changes(1, (Promise("p", "x" * (MAX_NAME + 1), b"", 1),)),
    Again(-1),
    join(facts=(FACT,) * (MAX_FACTS + 1)),
    join(facts=(Fact("x" * (MAX_FACT_NAME + 1), "", bytes(8)),)),
    join(facts=(Fact("", "x" * (MAX_FACT_TEXT + 1), bytes(8)),)),
    join(facts=(Fact("", "", bytes(7)),)),
    join(facts=(Fact("", "", bytes(9)),)),
    join(label=Label("x" * (MAX_LABEL + 1))),
    join(label=Label("", -1)),
    join(label=Label("", 65536)),
    Report({"x" * (MAX_COUNTER_NAME + 1): 1}),
    Report({"x": -1}),
    Report({str(number): 0 for number in range(MAX_COUNTERS + 1)}),
]


@pytest.mark.parametrize("message", WITHIN, ids=range(len(WITHIN)))
def test_what_is_within_the_bounds_arrives(message):
    assert unpack_request(pack_message(message)) == message


@pytest.mark.parametrize("message", BEYOND, ids=range(len(BEYOND)))
def test_what_is_beyond_them_is_refused(message):
    with pytest.raises(MessageError, match="does not decode"):
        unpack_request(pack_message(message))


def test_any_changed_byte_is_noticed():
    frame = pack_message(join())
    for at in range(len(frame)):
        for bit in (1, 128):
            torn = bytearray(frame)
            torn[at] ^= bit
            with pytest.raises((MessageError, VersionError)):
                unpack_request(bytes(torn))


def test_two_that_became_one_and_a_part_of_one_are_refused():
    frame = pack_message(join())
    for torn in (frame + frame, frame[:-1], frame[: len(PROTOCOL) + 4], PROTOCOL):
        with pytest.raises(MessageError, match="not as it was sent"):
            unpack_request(torn)


def test_a_message_that_tells_a_number_alone():
    assert Changes(3).empty
    assert not Changes(3, snapshot=True).empty and not Changes(3, (PoolGone("p"),)).empty


def test_counters_are_reported_as_far_as_they_can_be_sent():
    assert report_of({"b": 2, "a{reason}": 1}) == Report({"a{reason}": 1, "b": 2})
    many = {f"{number:04}{'x' * 300}\udcff": number for number in range(1000)}
    report = report_of(many)
    assert unpack_request(pack_message(report)) == report
    assert list(report.counters.values()) == list(range(MAX_COUNTERS))
    assert unpack_request(pack_message(report_of({"\udcff": 1}))) == Report({"?": 1})
