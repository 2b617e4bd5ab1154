"""Joins the market on a thread of its own: tries again until it succeeds or is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.market.control import ControlHalf
from vllm_hook.guard import Guard, nothing_to_close


class Joining:
    """The joining thread of one engine. Call the methods from one thread; only `wait` blocks."""

    def __init__(
        self,
        connect: Callable[[], ControlHalf],
        pause: float,
        joined: Callable[[ControlHalf], None],
        failed: Callable[[str], None],
    ) -> None:
        """Start a thread that calls `connect`, which may take any time; after any exception again, `pause` s later.

        Two callbacks run on that thread: `joined`, when the control half can be taken, and `failed`, with the reason of
        a failed attempt in words, unless the attempt before it failed with the same kind of error. Raises RuntimeError
        where no thread can be started.
        """
        self._connect, self._pause = connect, pause
        self._joined, self._failed = joined, failed
        self._lock = threading.Lock()
        self._unwanted = threading.Event()
        self._tried = threading.Event()
        self._kind = ""  # of the last failure
        self._control: ControlHalf | None = None
        threading.Thread(target=self._run, name="kvmarket-join", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until the first attempt has succeeded or failed; False if it has done neither after so many seconds."""
        return self._tried.wait(seconds)

    def take(self) -> ControlHalf | None:
        """The control half, once, which the caller then owns; None while there is none, and after that call."""
        with self._lock:
            control, self._control = self._control, None
        return control

    def stop(self) -> ControlHalf | None:
        """Stop joining; a control half that is made later is closed. Returns the one made already, if not yet taken."""
        with self._lock:
            self._unwanted.set()
        return self.take()

    def _run(self) -> None:
        while not (self._unwanted.is_set() or self._attempt()):
            self._tried.set()
            self._unwanted.wait(self._pause)
        self._tried.set()

    def _attempt(self) -> bool:
        """Try once to join; returns whether it succeeded. A failure is counted and given to `failed`."""
        control: ControlHalf | None = None
        guard = Guard("join", lambda kind: self._missed(kind, f"{guard.error}; report the traceback logged with this"))
        with guard:  # any exception: the next attempt may succeed
            try:
                control = self._connect()
            except KVMarketError as error:
                self._missed(type(error).__name__, error)
            except OSError as error:
                self._missed(type(error).__name__, f"{error}; run `kvmarket doctor`, it looks for the cause")
        if control is None:
            return False
        with self._lock:
            wanted = not self._unwanted.is_set()
            if wanted:
                self._control = control
        with Guard("join", nothing_to_close):
            if wanted:
                self._joined(control)
            else:
                control.close()
        return True

    def _missed(self, kind: str, why: object) -> None:
        counters.add("vllm_join_failed", reason=kind, detail=why)
        if kind != self._kind:
            self._kind = kind
            with Guard("join", nothing_to_close):
                self._failed(f"{kind}: {why}")
