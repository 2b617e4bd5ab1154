"""Other markets near an address: those that live, each once, and nothing is made or left."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarket.registry.protocol import address as address_module
from kvmarket.registry.protocol import neighbours
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.neighbours import others_near
from kvmarket.registry.service.listener import Listener


@pytest.fixture(autouse=True)
def home(own_address: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the directory of names lies, which is not made."""
    directory = Path(own_address).with_name("home")
    monkeypatch.setattr(address_module, "_HOME", directory)
    return directory


@pytest.fixture
def serve() -> Iterator[object]:
    """Serve a market at an address until the test ends."""
    made: list[Listener] = []

    def listen(address: str) -> Listener:
        made.append(Listener(Address(address)))
        return made[-1]

    yield listen
    for listener in made:
        listener.close()


def names(address: str) -> list[str]:
    return [str(other) for other in others_near(Address(address))]


def test_those_that_live_in_the_directory_and_in_that_of_names(own_address: str, home: Path, serve):
    assert names(own_address) == [] and not home.exists()
    serve(own_address)
    beside, named = own_address + ".more", serve("named")
    listener = serve(beside)
    assert names(own_address) == [beside, str(named_path(home))]
    assert names("typo") == sorted([own_address, beside, str(named_path(home))][2:])
    listener.close()
    named.close()
    Path(beside).touch()
    assert names(own_address) == []
    assert names(own_address + "typo") == [own_address]


def named_path(home: Path) -> Path:
    return home / f"kvmarket-{os.geteuid()}" / "named"


def test_what_is_no_market_is_passed_over(own_address: str, serve):
    serve(own_address)
    folder = Path(own_address).parent
    (folder / "pip.lock").touch()
    held = os.open(folder / "pip.lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)  # as other programs do with such a file
    (folder / "poetry.lock").write_text("content")
    (folder / "poetry").touch()
    (folder / "dir.lock").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(folder / "dead"))
        (folder / "dead.lock").touch()
        (folder / ("x" * 90)).symlink_to(folder / "dead")
        (folder / ("x" * 90 + ".lock")).touch()
        before = sorted(folder.iterdir())
        assert names(own_address) == []
        assert names(own_address + "typo") == [own_address]
        assert sorted(folder.iterdir()) == before
    os.close(held)


def test_a_market_that_is_reached_by_two_paths_is_one(own_address: str, serve):
    serve(own_address)
    link = Path(own_address).parent.with_name(Path(own_address).parent.name + "-link")
    link.symlink_to(Path(own_address).parent)
    try:
        assert names(str(link / "s")) == []
        assert names(str(link / "typo")) == [str(link / "s")]
    finally:
        link.unlink()


def test_a_directory_that_is_gone(own_address: str):
    place = Address(str(Path(own_address).parent / "sub" / "s"))
    assert others_near(place) == []


def test_a_market_in_another_folder_is_seen_by_its_socket(own_address: str, serve, monkeypatch: pytest.MonkeyPatch):
    """A folder may be mistyped as a name may. No other test sees markets that are not its own."""
    monkeypatch.setattr(neighbours, "_SOCKETS", Path("/proc/net/unix"))
    folder = Path(own_address).parent
    elsewhere = str(folder / "typo" / "s")
    listener = serve(elsewhere)

    def mine(address: str) -> list[str]:
        return [name for name in names(address) if name.startswith(f"{folder}/")]

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other, socket.socket(socket.AF_UNIX) as stream:
        (folder / "other").mkdir()
        for name, door in {"packets": other, "stream": stream}.items():
            door.bind(str(folder / "other" / name))
            door.listen()
        assert mine(own_address) == [elsewhere], "a program that is no service is none"
        assert mine(elsewhere) == []
    serve(own_address + ".z")
    assert mine(own_address) == [own_address + ".z", elsewhere], "those nearby come first"
    listener.close()
    assert elsewhere not in names(own_address)


def test_the_market_that_was_meant_comes_before_those_of_strangers(
    own_address: str, serve, monkeypatch: pytest.MonkeyPatch
):
    """The log names three: tests of others, say, must not hide the one whose folder was mistyped."""
    monkeypatch.setattr(neighbours, "_SOCKETS", Path("/proc/net/unix"))
    folder = Path(own_address).parent
    meant = str(folder / "market" / "s")
    for elsewhere in ("a-b-0/s", "c-d-1/s", "e-f-2/s", "g-h-3/s"):
        serve(str(folder / elsewhere))
    serve(meant)
    assert next(name for name in names(str(folder / "mraket" / "s")) if name.startswith(f"{folder}/")) == meant


@pytest.mark.parametrize(
    "shown", ["", "Num RefCount Protocol Flags Type St Inode Path\n", "x\n0: 1 1 00010000 0005 01 1\n"]
)
def test_sockets_that_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str):
    (tmp_path / "unix").write_text(shown)
    for path in (tmp_path / "unix", tmp_path / "missing"):
        monkeypatch.setattr(neighbours, "_SOCKETS", path)
        assert others_near(Address(tmp_path / "s")) == []
