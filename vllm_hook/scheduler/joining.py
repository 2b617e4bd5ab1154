"""Joining the market on a thread of its own, again and again, until it works or nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.market.control import ControlHalf
from vllm_hook.guard import Guard, unconcerned


class Joining:
    """One engine on its way into the market. Its methods are called from one thread, and only `wait` waits."""

    def __init__(
        self,
        connect: Callable[[], ControlHalf],
        pause: float,
        joined: Callable[[ControlHalf], None],
        failed: Callable[[str], None],
    ) -> None:
        """Start to `connect`, which may take as long as it likes, and raise what it likes: then again after a `pause`.

        Two hear of it on the joining thread: `joined` when the control half is there to be taken, `failed` why an
        attempt failed, in words, unless the one before it failed for the same kind of reason. Raises RuntimeError where
        no thread can be started.
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
        """Wait until the first attempt has ended, well or not; False if it has not after so many seconds."""
        return self._tried.wait(seconds)

    def take(self) -> ControlHalf | None:
        """The control half, once it is there; it is the caller's then."""
        with self._lock:
            control, self._control = self._control, None
        return control

    def stop(self) -> ControlHalf | None:
        """Join no more: a control half that comes later is closed. One that is there is the caller's."""
        with self._lock:
            self._unwanted.set()
        return self.take()

    def _run(self) -> None:
        while not (self._unwanted.is_set() or self._attempt()):
            self._tried.set()
            self._unwanted.wait(self._pause)
        self._tried.set()

    def _attempt(self) -> bool:
        """Whether the market has been joined; if not, why is counted and told."""
        control: ControlHalf | None = None
        guard = Guard("join", lambda kind: self._missed(kind, f"{guard.error}; report the traceback logged with this"))
        with guard:  # whatever it is: the next attempt may not meet it
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
        with Guard("join", unconcerned):
            if wanted:
                self._joined(control)
            else:
                control.close()
        return True

    def _missed(self, kind: str, why: object) -> None:
        counters.add("vllm_join_failed", reason=kind, detail=why)
        if kind != self._kind:
            self._kind = kind
            with Guard("join", unconcerned):
                self._failed(f"{kind}: {why}")
