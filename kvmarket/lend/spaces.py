"""Looks at the spaces of a market, on a thread of its own: a service that does not answer keeps nobody else waiting."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kvmarket.errors import RegistryError, VersionError
from kvmarket.registry.client.asking import ask_space, ask_spaces
from kvmarket.registry.client.home import beside
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import SpaceDescribed
from kvmarket.support.supervised import survived

LOOK_SECONDS = 1.0  # between two looks


class SpaceWatch:
    """The spaces of the market at an address, as last seen: the number of engines in each, and what it is like."""

    def __init__(self, place: Address) -> None:
        """Start the thread. While there is no service, the last state stays."""
        self._place = place
        self.engines: Mapping[str, int] = {}  # replaced, never changed
        self.described: Mapping[str, SpaceDescribed] = {}  # of spaces with engines; replaced, never changed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvmarket-spaces", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Waits for an answer that is under way, some seconds at most."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with survived("the thread that looks at the spaces of a market"):
                self._look()
            self._closing.wait(LOOK_SECONDS)

    def _look(self) -> None:
        at = self._place
        try:
            try:
                spaces = ask_spaces(at).spaces
            except VersionError:  # engines of our version meet beside it
                at = beside(at)
                spaces = ask_spaces(at).spaces
            known = {space.name: self.described.get(space.name) for space in spaces if space.engines}
            told = {name: each or ask_space(at, name) for name, each in known.items()}
        except RegistryError:  # no service: engines, or lenders as members, start one
            return
        self.described = {name: each for name, each in told.items() if each.description}
        self.engines = {space.name: space.engines for space in spaces}
