"""Where a market lives: sockets that cannot be, files that are not ours, and a service of another version."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

import kvmarket
from kvmarket.errors import AddressError, VersionError, WrongAddressError
from kvmarket.registry.client.connection import join_service
from kvmarket.registry.protocol import address as address_module
from kvmarket.registry.protocol import messages
from kvmarket.registry.protocol.address import MAX_SOCKET_PATH, Address
from kvmarket.registry.protocol.neighbours import others_near
from kvmarket.registry.protocol.packets import PacketListener, PacketSocket
from tests.model_engine import FACTS, ModelEngine
from tests.registry.service.test_strangers import as_nobody, joining_with, refusal_of

FINGERPRINT = kvmarket.Fingerprint.of(**FACTS)


def test_addresses_that_cannot_be(tmp_path):
    with pytest.raises(WrongAddressError, match="too long"):
        Address(tmp_path / ("x" * 120))
    Address(tmp_path / (longest := "x" * (MAX_SOCKET_PATH - len(f"{tmp_path}/.lock"))))  # its lock has a longer name
    with pytest.raises(AddressError, match="too long"):
        Address(tmp_path / f"{longest}x")
    with pytest.raises(WrongAddressError, match="names no Unix socket"):
        Address("tcp://127.0.0.1:5555")
    (tmp_path / "file").touch()
    for path in ("file/socket", "file/sub/socket"):
        with pytest.raises(WrongAddressError, match="give another address"):
            Address(tmp_path / path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(WrongAddressError, match="remove the links"):
        Address(tmp_path / "loop" / "socket")


def test_who_looks_makes_no_directory(tmp_path):
    """Whoever mistypes an address for `kvmarket top` leaves nothing behind; whoever serves makes what is missing."""
    place = Address(tmp_path / "typo" / "sub" / "s")
    assert not place.service_lives() and others_near(place) == [] and not (tmp_path / "typo").exists()
    place.prepare()
    assert place.socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_somebody_else_has_to_make_is_no_wrong_address():
    place = Address("/proc/nothing/s")  # where not even root can make it
    with pytest.raises(AddressError, match="cannot be made") as said:
        place.prepare()
    assert not isinstance(said.value, WrongAddressError)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """In place of /tmp, where default addresses are."""
    monkeypatch.setattr(address_module, "_HOME", tmp_path)
    monkeypatch.delenv("KVMARKET_ADDRESS", raising=False)
    return tmp_path / f"kvmarket-{os.geteuid()}"


def test_a_default_directory_that_others_can_enter(home):
    home.mkdir(mode=0o755)
    with pytest.raises(AddressError, match="0700"):
        Address()


def test_a_default_directory_that_leads_elsewhere(home, tmp_path):
    """Another user may have made the link, to have us write where he may not."""
    (tmp_path / "own").mkdir(mode=0o700)
    home.symlink_to(tmp_path / "own")
    with pytest.raises(AddressError, match="is a link"):
        Address("name")


def test_a_default_directory_that_another_user_has_made(home, monkeypatch):
    home.mkdir(mode=0o700)
    monkeypatch.setattr(address_module, "_HOME", home.parent)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    home.rename(home.with_name("kvmarket-12345"))
    with pytest.raises(AddressError, match=r"belongs to another user .* set KVMARKET_ADDRESS"):
        Address()


@pytest.mark.parametrize("another", ["dir", "file", "link"])
def test_no_other_user_can_make_an_address_wrong(home, another, monkeypatch):
    """Else he could keep engines from starting: where he has the directory of names, they go on trying."""
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    path = home.with_name("kvmarket-12345")
    {"dir": path.mkdir, "file": path.touch, "link": lambda: path.symlink_to("loop")}[another]()
    for given in (None, "name"):
        with pytest.raises(AddressError, match="belongs to another user") as said:
            Address(given)
        assert not isinstance(said.value, WrongAddressError)


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "TMPDIR", "HOME", "KVMARKET_ADDRESS"])
@pytest.mark.parametrize("value", ["a directory", "", "  ", None])
def test_the_default_is_the_same_in_every_environment(home, tmp_path, monkeypatch, variable, value):
    """A login shell has variables that cron, sudo and containers lack."""
    if value is None:
        monkeypatch.delenv(variable, raising=False)
    elif value != "a directory":
        monkeypatch.setenv(variable, value)
    elif variable != "KVMARKET_ADDRESS":
        monkeypatch.setenv(variable, str(tmp_path))
    assert Address().socket == home / "market"
    assert Address("name").socket == home / "name"
    assert not home.exists()
    Address().prepare()
    assert home.stat().st_mode & 0o777 == 0o700


def test_what_an_address_may_be(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, path in {
        "~/a": tmp_path / "a",
        "~": tmp_path / "market",
        ".": tmp_path / "market",
        "./sub/s": tmp_path / "sub/s",
        "ipc://sub/s": tmp_path / "sub/s",
        str(tmp_path): tmp_path / "market",
        ".hidden": home / ".hidden",
    }.items():
        assert Address(given).socket == path
    monkeypatch.setenv("KVMARKET_ADDRESS", "sub/t")
    assert Address().socket == tmp_path / "sub/t"


@pytest.mark.parametrize(
    "given", ["", " name", "name\n", "a\0b", "ipc://", "tcp://host", "~nobody-has-this-name/s", "\ud800/s"]
)
def test_addresses_that_name_no_path(home, given):
    with pytest.raises(AddressError, match="give"):
        Address(given)


def test_a_relative_address_where_there_is_no_directory(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(AddressError, match="give an absolute path"):
        Address("sub/s")


def test_directories_that_may_not_be_entered(tmp_path):
    """Also for root, who becomes another user for it."""
    (tmp_path / "locked").mkdir(mode=0o700)
    (tmp_path / "locked" / "sub").mkdir()
    (tmp_path / "locked").chmod(0)
    tmp_path.chmod(0o755)
    try:
        for path in ("locked/sub/s", "locked/s", "locked/sub/other/s"):
            assert "give an address" in as_nobody(refusal_of, str(tmp_path / path))
    finally:
        (tmp_path / "locked").chmod(0o700)


def test_the_markets_files_are_private(engine):
    place = engine.market._control._client.home.address
    assert [oct(path.stat().st_mode & 0o777) for path in (place.socket, place.lock)] == ["0o600", "0o600"]


def test_a_socket_that_cannot_be_made(own_address):
    """A directory where the socket should be: the service cannot bind, and `connect` says where to look."""
    from kvmarket.registry.service.service import Service

    place = Address(own_address)
    place.socket.mkdir()
    with pytest.raises(AddressError, match="give another address"):
        Service(place)


def test_a_service_of_another_version(own_address):
    """Something holds the lock and answers in another protocol."""
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    door = PacketListener(place.socket)
    wires: list[PacketSocket] = []

    def answer() -> None:
        select.select([door], [], [])
        wires.append(door.accept())
        select.select([wires[0]], [], [])
        wires[0].send(b"kvmarket/999\n\x80")

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(VersionError, match="kvmarket/999"):
        join_service(place, *joining_with(), threading.Event())
    thread.join()
    wires[0].close()
    door.close()
    os.close(lock)


def test_a_service_that_speaks_another_way(own_address):
    """An older one, whose socket is a stream."""
    place = Address(own_address)
    lock = place.take_lock()
    assert lock is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(place.socket))
        other.listen()
        with pytest.raises(VersionError, match="one version of kvmarket"):
            join_service(place, *joining_with(), threading.Event())
    os.close(lock)


def test_an_engine_of_another_version(own_address, monkeypatch):
    engine = ModelEngine(own_address)
    with monkeypatch.context() as patch, pytest.raises(VersionError, match="one version of kvmarket"):
        patch.setattr(messages, "PROTOCOL", b"kvmarket/0\n")
        kvmarket.connect(engine.cache, FINGERPRINT, address=own_address)
    engine.close()


def test_an_address_where_something_else_lies(tmp_path):
    """The service would remove it to bind its socket there."""
    precious = tmp_path / "model.db"
    precious.write_text("data")
    with pytest.raises(WrongAddressError, match="is not a market's"):
        Address(precious)
    assert precious.read_text() == "data"


def test_an_address_of_another_user(tmp_path, monkeypatch):
    place = Address(tmp_path / "s")
    (tmp_path / "s.lock").touch(mode=0o666)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(AddressError, match="another user"):
        place.service_lives()


def test_a_lock_with_something_in_it_is_no_lock(tmp_path):
    """Somebody's notes; a service would remove them in the end."""
    (tmp_path / "s.lock").write_text("combination")
    with pytest.raises(AddressError, match="is not a market's"):
        Address(tmp_path / "s")


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path):
    place = Address(tmp_path / "s")
    place.lock.symlink_to("precious")
    for look in (place.take_lock, place.service_lives):
        with pytest.raises(AddressError, match=r"give another address|remove the links"):
            look()
    assert not (tmp_path / "precious").exists()


def test_a_directory_that_others_can_enter_is_the_users_own_choice(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("open")
    assert not Address(tmp_path / "open" / "s").service_lives()
    assert not Address(tmp_path / "link" / "s").service_lives()


def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.access", lambda path, mode, effective_ids: not (effective_ids and mode == os.W_OK | os.X_OK)
    )
    with pytest.raises(WrongAddressError, match="cannot write to"):
        Address(tmp_path / "s")
