"""Numbers: nothing is missed unseen, nothing counts twice, and from a gap on nothing counts until a snapshot begins."""

from __future__ import annotations

from kvmarket.registry.protocol.messages import Again, Changes, PoolGone
from kvmarket.registry.protocol.numbering import ASK_SECONDS, Heard, Told

GONE = (PoolGone("p"),)


def begun() -> tuple[Told, Heard]:
    told, heard = Told(), Heard(0.0)
    assert heard.accept(told.changes(GONE, snapshot=True))
    return told, heard


def test_nothing_counts_before_a_snapshot_begins():
    told, heard = Told(), Heard(0.0)
    assert heard.broken
    assert not heard.accept(told.changes(GONE))
    assert heard.accept(told.changes(GONE, snapshot=True))
    assert not heard.broken
    assert heard.accept(told.changes(GONE))


def test_what_follows_counts_once():
    told, heard = begun()
    message = told.changes(GONE)
    assert heard.accept(message)
    assert not heard.accept(message)
    assert not heard.broken
    assert heard.accept(told.changes(GONE))


def test_from_a_gap_on_nothing_counts_until_a_snapshot_begins():
    told, heard = begun()
    missed = told.changes(GONE)
    assert not heard.accept(told.changes(GONE))
    assert heard.broken
    assert not heard.accept(missed), "it comes too late"
    assert not heard.accept(told.changes(GONE))
    assert heard.accept(told.changes((), snapshot=True))
    assert heard.accept(told.changes(GONE))


def test_a_snapshot_of_before_does_not_begin_again():
    told, heard = begun()
    old = told.changes(GONE, snapshot=True)
    assert heard.accept(told.changes(GONE, snapshot=True))
    assert not heard.accept(old)
    assert heard.accept(told.changes(GONE))


def test_the_loss_of_the_last_message_is_seen_by_its_number():
    told, heard = begun()
    assert not heard.accept(told.mark())
    assert not heard.broken
    told.changes(GONE)
    assert not heard.accept(told.mark())
    assert heard.broken


def test_a_late_mark_is_no_gap():
    told, heard = begun()
    mark = told.mark()
    assert heard.accept(told.changes(GONE))
    assert not heard.accept(mark)
    assert not heard.broken


def test_a_snapshot_is_asked_for_at_once_and_then_every_now_and_then():
    told, heard = begun()
    assert heard.wanted(1.0) is None
    told.changes(GONE)
    heard.accept(told.mark())
    assert heard.wanted(1.0) == Again(2)
    assert heard.wanted(1.0 + ASK_SECONDS / 2) is None
    assert heard.wanted(1.0 + ASK_SECONDS) == Again(2)
    heard.accept(told.changes((), snapshot=True))
    assert heard.wanted(100.0) is None


def test_the_first_snapshot_is_waited_for_a_little():
    heard = Heard(5.0)
    assert heard.wanted(5.0) is None
    assert heard.wanted(5.0 + ASK_SECONDS) == Again(0)


def test_a_snapshot_that_has_begun_answers_who_had_not_seen_it():
    told, heard = begun()
    told.changes(GONE)
    heard.accept(told.mark())
    again = heard.wanted(1.0)
    assert again is not None
    assert not told.answers(again)
    told.changes((), snapshot=True)
    assert told.answers(again)
    heard.accept(told.mark())  # the message with which it began was lost
    again = heard.wanted(2.0)
    assert again is not None
    assert not told.answers(again)


def test_an_empty_snapshot_has_a_number_of_its_own():
    assert Changes(1).empty
    assert not Changes(1, snapshot=True).empty
    assert not Changes(1, GONE).empty
