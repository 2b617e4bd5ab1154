"""``kvmarket lend --resize``, with lenders that are processes: what they lend, and what ends, stops or kills them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvmarket.cli.app import app
from kvmarket.cli.resize import line_of
from kvmarket.errors import AddressError, KVMarketError
from kvmarket.lend.resize import Resized, ask
from kvmarket.lend.resize.messages import Lent, Memory
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.lender_sockets import remove_dead
from tests.cli.test_lend import lender, lent_offers, members
from tests.container import apart
from tests.model_engine import BLOCK, ModelEngine, matched, prompt, until

BYTES = 2 * 2 * BLOCK * 24 * 2  # of a block


def resize(address: str, *options: str) -> tuple[int, str]:
    """The exit status of the command, and what it prints, to either stream."""
    command = [sys.executable, "-m", "kvmarket.cli", "lend", "--resize", "--address", address, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, f"{done.stdout}{done.stderr}".replace("\n", "")


@contextmanager
def listener(address: str, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens as a lender does, and lends nothing; `before`: the command that runs it."""
    with subprocess.Popen([*before, sys.executable, "-m", "tests.lend.asked", address]) as process:
        try:
            yield process
        finally:
            process.kill()


def sockets(address: str) -> list[str]:
    return sorted(path.name for path in Path(address).parent.glob("s.lend*"))


@pytest.mark.long
def test_lenders_that_run_are_resized_and_leave_nothing_behind(own_address):
    engine, tokens = ModelEngine(own_address), prompt(6 * BLOCK, 7)
    with lender(own_address, "--host-gb", "0.001") as one, listener(own_address) as other:
        until(lambda: len(sockets(own_address)) == 2)
        status, said = resize(own_address, "--host-gb", "1")
        assert status == 2 and "say which one with --lender PID" in said and str(one.pid) in said
        other.send_signal(signal.SIGKILL)
        other.wait()
        until(lambda: members(own_address).get(one.pid))
        engine.publish(tokens, list(range(6)))
        until(lambda: lent_offers(own_address) == 6)
        engine.market.retire(range(6))
        hit = matched(engine, tokens)
        assert engine.market.fetch(hit, list(range(6))).wait() == 6, "it is mapped"
        assert resize(own_address, "--host-gb", "0") == (0, f"lender {one.pid} lends 0.001 -> 0 GB of host memory")
        assert engine.market.fetch(hit, list(range(6))).wait() == 0
        until(lambda: one.pid not in members(own_address))
        left = f"s.lend-{Process.current().namespace}-{one.pid}"
        assert sockets(own_address) == [left], "that of the killed one went"
        ask(own_address, host_bytes=3 * BYTES, lender=one.pid)
        until(lambda: members(own_address).get(one.pid))
        engine.publish(tokens, list(range(6)))
        until(lambda: lent_offers(own_address) == 3)
        one.send_signal(signal.SIGSTOP)
        with pytest.raises(AddressError, match=f"lender {one.pid} has not answered within .*kill -CONT {one.pid}"):
            ask(own_address, host_bytes=7 * BYTES, seconds=0.3)
        one.send_signal(signal.SIGCONT)
        before, after = ask(own_address, host_bytes=8 * BYTES)
        assert [lent.memories[0].nbytes // BYTES for lent in (before, after)] == [3, 8], "who gave up is not obeyed"
        one.send_signal(signal.SIGTERM)
        assert one.wait(10) == 0 and not sockets(own_address)
    engine.close()


@pytest.mark.skipif(apart() is None, reason="this user may make no container")
def test_a_lender_in_a_container_is_asked_from_outside(own_address):
    """They share the market's folder and nothing else. It dies with the container, and its socket is found dead."""
    with listener(own_address, *(apart() or ())) as process:
        until(lambda: sockets(own_address))
        before, after = ask(own_address, host_bytes=7)
        assert (before.memories[0].nbytes, after.memories[0].nbytes) == (100, 7)
        assert after.process.namespace != Process.current().namespace
        process.kill()
        until(lambda: not remove_dead(Address(own_address)) and not sockets(own_address))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--resize", "--host-gb", "1"), "no lender runs at"),
        (("--resize", "--host-gb", "1", "--keep-free", "1"), "--keep-free is chosen when a lender starts"),
        (("--resize", "--gb", "inf"), "inf GB to lend"),
        (("--resize", "--gpu", "1"), "no new size"),
        (("--resize", "--gpu", "1", "--host-gb", "1"), "GPU 1 without a new size"),
        (("--lender", "7", "--host-gb", "1"), "--lender 7 without --resize"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(own_address, options, said):
    done = CliRunner().invoke(app, ["lend", "--address", own_address, *options])
    assert isinstance(done.exception, KVMarketError) and said in str(done.exception)
    assert not list(Path(own_address).parent.iterdir())


def test_the_line_says_what_is_lent_and_what_hinders_it():
    me = Process(12, 1, 1)
    before = Lent(me, (Memory(1, 80 * 10**9, 0, 8 * 10**9), Memory(None, 10**9, 0, 8 * 10**9)), True)
    after = Lent(me, (Memory(1, 40 * 10**9, 0, 8 * 10**9), Memory(None, 10**9, 0, 0)), True)
    assert line_of(Resized(before, after)) == (
        "lender 12 lends 80 -> 40 GB of GPU 1, while 8 GB stay free, and 1 GB of host memory; "
        "it is paused: this counts after SIGUSR2"
    )
