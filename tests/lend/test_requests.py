"""Who may ask a lender for another size, and what strangers, torn messages and the dead can do to it: nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from kvmarket import counters
from kvmarket.errors import AddressError, MessageError, MisuseError, VersionError
from kvmarket.lend.resize import ask, listening
from kvmarket.lend.resize.listening import MOST_ASKERS, Requests
from kvmarket.lend.resize.messages import MOST_BYTES, AskLent, Resize, Size, unpack_answer
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol import packets
from kvmarket.registry.protocol.address import MAX_SOCKET_PATH, Address
from kvmarket.registry.protocol.lender_sockets import remove_dead, socket_of
from kvmarket.registry.protocol.messages import PROTOCOL, AskDescriptors, Refused, pack_message
from kvmarket.registry.protocol.packets import PacketListener, dial
from kvmarket.registry.service.service import Service
from tests.lend.asked import FAILS, Asked, Turning
from tests.model_engine import until
from tests.scarcity import descriptors

NOBODY = 65534
ME = Process.current()


@pytest.fixture
def asked(own_address):
    """Such a lender."""
    lender = Asked(own_address)
    with Turning(lender.requests.turn):
        until(lender.path.exists)
        yield lender
    lender.requests.close()
    assert not list(lender.path.parent.iterdir()), "it leaves nothing behind"


def frames(path: Path, *messages: bytes) -> list[object]:
    """The answers to these packets, sent over one connection; None where it was closed instead."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
        end.settimeout(10)
        end.connect(str(path))
        answers: list[object] = []
        for message in messages:
            try:
                end.send(message)
                answers.append(unpack_answer(end.recv(1 << 16)[1:]))
            except (BrokenPipeError, ConnectionResetError, MessageError):
                answers.append(None)
        return answers


GOOD = pack_message(AskLent())


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\0" + GOOD[:-1], "MessageError"),
        (b"\0" + GOOD + GOOD, "MessageError"),
        (b"\0" + b"hello", "MessageError"),
        (b"\0", "MessageError"),
        (b"\0" + PROTOCOL.replace(b"/", b"/9") + GOOD[len(PROTOCOL) :], "VersionError"),
        (b"\0" + pack_message(AskDescriptors("a pool")), "MessageError"),
        (b"\0" + pack_message(Resize(())), "MessageError"),
        (b"\0" + pack_message(Resize((Size(None, -1),))), "MessageError"),
        (b"\0" + pack_message(Resize((Size(-1, 1),))), "MessageError"),
        (b"\0" + b"x" * (MOST_BYTES + 1), "MessageError"),
        (b"\1" + b"x" * (MOST_BYTES + 1), "MessageError"),
        (b"\2" + GOOD, "MessageError"),
    ],
)
def test_what_is_no_question_is_refused_and_disturbs_nobody(asked, message, kind):
    (answer,) = frames(asked.path, message)
    assert isinstance(answer, Refused) and answer.kind == kind
    assert not asked.questions and asked.asked() == (100, 7)


def test_a_failure_closes_the_connection_and_nothing_else(asked):
    with pytest.raises(AddressError, match=f"lender {ME.pid} has hung up, or ended; ask again"):
        ask(asked.place.socket, host_bytes=FAILS)
    assert asked.asked() == (100, 7)


def test_whoever_says_nothing_or_half_a_message_makes_nobody_wait(asked, monkeypatch):
    monkeypatch.setattr(listening, "SILENT_SECONDS", 0.2)
    before = descriptors()
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3 * MOST_ASKERS)]
    for end in silent:
        end.connect(str(asked.path))
        end.send(b"\1" + GOOD[:9])
    assert asked.asked() == (100, 7), "after the silent ones before it in the queue were sent away"
    until(lambda: len(asked.requests._askers) == 0)
    for end in silent:
        assert end.recv(10) == b""
        end.close()
    until(lambda: descriptors() == before)


def test_whoever_reads_no_answer_is_sent_away(asked, monkeypatch):
    monkeypatch.setattr(packets, "BUFFER_BYTES", 4096)
    with dial(asked.path) as end:
        until(lambda: not end.send(GOOD) or end.blocked or end.hung_up)
        until(lambda: end.flush() and (end.hung_up or not end.send(GOOD)))
    assert asked.asked() == (100, 7)


def test_a_question_whose_asker_has_gone_is_not_obeyed(own_address):
    """He was told that nobody answers: the lender was stopped, say."""
    lender = Asked(own_address)
    lender.requests.turn()
    for stays in (False, True):
        with dial(lender.path) as end:
            end.send(pack_message(Resize((Size(None, 5),))))
            if not stays:
                end.close()
            lender.requests.turn()
            assert lender.nbytes == (5 if stays else 100)
    lender.requests.close()


def test_a_lender_that_takes_no_turn_is_named(own_address):
    lender = Asked(own_address)
    lender.requests.turn()
    with pytest.raises(AddressError, match=f"lender {ME.pid} has not answered within 0 s; nothing .* -CONT {ME.pid}"):
        lender.asked(seconds=0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:  # more ask than the kernel keeps
        end.setblocking(False)
        ends = []
        try:
            while True:
                ends.append(dial(lender.path))
        except BlockingIOError:
            pass
        assert [each.pid for each in remove_dead(lender.place)] == [ME.pid], "but it is not dead"
        with pytest.raises(AddressError, match=f"{ME.pid} lets nobody in .* -CONT"):
            lender.asked()
        for each in ends:
            each.close()
    lender.requests.turn()
    until(lambda: lender.requests.turn() or not lender.requests._askers)
    assert not lender.questions[1:]
    lender.requests.close()


@pytest.mark.parametrize("side", ["lender", "asker", "file"])
def test_another_user_neither_asks_nor_answers(asked, monkeypatch, side):
    if side == "lender":
        with dial(asked.path) as end:
            monkeypatch.setattr(packets, "_user_of", lambda end: NOBODY)
            assert end.wait(10) is None and end.closed
            monkeypatch.undo()
    elif side == "asker":
        monkeypatch.setattr(packets, "_user_of", lambda end: NOBODY)
        with pytest.raises(AddressError, match=f"the lender at .* is another user's .uid {NOBODY}."):
            asked.asked()
        monkeypatch.undo()
    elif os.getuid():
        pytest.skip("only root can give a file away")
    else:
        os.chown(asked.path, NOBODY, -1)
        with pytest.raises(AddressError, match=f"lender {ME.pid} is another user's .uid {NOBODY}.; ask as that user"):
            asked.asked()
        os.chown(asked.path, os.getuid(), -1)
    assert not asked.questions
    assert asked.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_stranger_who_listens_there_too_is_no_lender_of_ours(asked):
    path = asked.path.with_name(f"{asked.path.name}9")
    stranger = PacketListener(path)
    os.chown(path, NOBODY, -1)
    assert ask(asked.place.socket, host_bytes=7).after.memories[0].nbytes == 7
    stranger.close()
    path.unlink()


def test_a_process_that_answers_at_another_ones_socket_is_not_asked(asked):
    other = asked.path.with_name(asked.path.name[:-1] + "00")
    asked.path.rename(other)
    with pytest.raises(MessageError, match=f"not that of the process that answers there .{ME.pid}."):
        asked.asked()
    asked.requests._look_at = 0.0
    until(asked.path.exists)
    other.unlink(missing_ok=True)
    assert asked.questions.count(AskLent()) == len(asked.questions)


def test_a_socket_that_is_removed_is_made_again(asked):
    asked.path.unlink()
    asked.path.parent.rmdir()
    asked.requests._look_at = 0.0
    until(asked.path.exists)
    until(lambda: remove_dead(asked.place))
    assert asked.asked() == (100, 7)


@pytest.mark.parametrize("when", ["before it listens", "then"])
def test_a_socket_that_is_removed_at_once_is_made_again(own_address, monkeypatch, when):
    lender, bind, listen_at = Asked(own_address), socket.socket.bind, listening.listen_at

    def taken_for_a_dead_ones(end: socket.socket, path: str) -> None:
        bind(end, path)
        assert remove_dead(lender.place) == [] and not Path(path).exists()

    def removed(*what: Any) -> PacketListener:
        listener = listen_at(*what)
        lender.path.unlink()
        return listener

    with monkeypatch.context() as patched:
        if when == "then":
            patched.setattr(listening, "listen_at", removed)
        else:
            patched.setattr(socket.socket, "bind", taken_for_a_dead_ones)
        lender.requests.turn()
    assert not list(lender.path.parent.iterdir())
    lender.requests._look_at = 0.0
    lender.requests.turn()
    assert [each.path for each in remove_dead(lender.place)] == [lender.path]
    lender.requests.close()


def test_where_it_can_have_no_socket_a_lender_goes_on_without(tmp_path):
    """Its address is a market's, but with the numbers of a process it is too long."""
    place = Address(tmp_path / ("x" * (MAX_SOCKET_PATH - len(f"{tmp_path}/.lock"))))
    with pytest.raises(AddressError, match=r"give an address that is \d+ bytes shorter"):
        socket_of(place, ME)
    requests, key = Requests(place, lambda question: None), "lender_not_asked{it has no socket, and cannot be resized}"
    before = counters.snapshot().get(key, 0)
    requests.turn()
    requests.turn()
    assert counters.snapshot()[key] == before + 1, "it tries again a second later"
    requests.close()


def stale(place: Address, pid: int) -> Path:
    """The socket that a dead lender has left."""
    path = socket_of(place, Process(pid, 1, ME.namespace)).path
    PacketListener(path).close()
    return path


@pytest.mark.parametrize("who", ["lender", "asker", "service"])
def test_the_sockets_of_the_dead_are_removed_and_no_others(own_address, who):
    place = Address(own_address)
    dead, other = stale(place, 1 << 22), stale(Address(f"{own_address}.12"), 1 << 22)
    notes, living = place.socket.with_name("s.lend-1-2"), socket_of(place, Process(5, 1, 7)).path
    notes.write_text("no socket")
    listener = PacketListener(living)
    kept = {other, notes, living}
    if who == "service":
        service = Service(place)
        service._sweep()
        assert not dead.exists()
        stale(place, 1 << 22)
        service.close()
    elif who == "lender":
        lender = Asked(own_address)
        lender.requests.turn()
        kept.add(lender.path)
    else:
        with pytest.raises(AddressError, match=f"no lender {1 << 22} runs at .*: 5"):
            ask(own_address, host_bytes=1, lender=1 << 22)
    assert set(place.socket.parent.iterdir()) == kept
    if who == "lender":
        lender.requests.close()
    listener.close()


def test_none_and_several(own_address):
    place = Address(own_address)
    with pytest.raises(AddressError, match=r"no lender runs at .*; start one with `kvmarket lend`"):
        ask(own_address, host_bytes=1)
    lender = Asked(own_address)
    others = [PacketListener(socket_of(place, Process(pid, 1, 7)).path) for pid in (5, ME.pid)]
    others.append(PacketListener(socket_of(place, Process(5, 1, 8)).path))
    with Turning(lender.requests.turn):
        until(lender.path.exists)
        with pytest.raises(MisuseError, match=f"several lenders run at .*: 5, 5, {ME.pid}, {ME.pid}; .* --lender PID"):
            lender.asked()
        with pytest.raises(MisuseError, match="lenders in several containers have the number 5"):
            lender.asked(lender=5)
        assert lender.asked(lender=ME.pid) == (100, 7), "that of our own numbers"
    for other in others:
        other.close()
    lender.requests.close()


def test_a_lender_of_another_version_says_so(asked, monkeypatch):
    monkeypatch.setattr(listening, "pack_message", lambda reply: b"kvmarket/999\n" + pack_message(reply)[12:])
    with pytest.raises(VersionError, match="kvmarket/999; run one version"):
        asked.asked()
    assert not [each for each in asked.questions if isinstance(each, Resize)]
