"""A lender without memory, which only listens: in a thread, or as a process that starts soon.

python -m tests.lend.asked ADDRESS
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from kvmarket.lend.resize import ask
from kvmarket.lend.resize.listening import Requests
from kvmarket.lend.resize.messages import AskLent, Lent, Memory, Resize
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.lender_sockets import socket_of

TURN_SECONDS = 0.002
FAILS = 13  # bytes


class Asked:
    """It remembers what it was asked, and fails where it is asked for `FAILS` bytes."""

    def __init__(self, address: str) -> None:
        self.nbytes, self.place, self.questions = 100, Address(address), []
        self.requests = Requests(self.place, self.answer)
        self.path = socket_of(self.place, Process.current()).path

    def answer(self, question: AskLent | Resize) -> Lent:
        self.questions.append(question)
        if isinstance(question, Resize):
            (size,) = question.sizes
            if size.nbytes == FAILS:
                raise ZeroDivisionError("a test")
            self.nbytes = size.nbytes
        return Lent(Process.current(), (Memory(None, self.nbytes, 0, 0),), False)

    def asked(self, **options: object) -> tuple[int, int]:
        """Ask it for 7 bytes; returns the sizes before and since."""
        before, after = ask(self.place.socket, host_bytes=7, **options)
        return before.memories[0].nbytes, after.memories[0].nbytes


class Turning:
    """A thread that calls `turn` again and again while it is entered."""

    def __init__(self, turn: Callable[[], object]) -> None:
        self._turn, self._ending = turn, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Turning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(TURN_SECONDS):
            self._turn()


if __name__ == "__main__":
    process = Asked(sys.argv[1])
    while True:
        process.requests.turn()
        time.sleep(TURN_SECONDS)
