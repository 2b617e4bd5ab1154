"""A lender: follows every space of a market in which there are engines, and shares its memory out among them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from kvmarket import counters
from kvmarket.errors import KVMarketError, MisuseError, RegistryError, VersionError
from kvmarket.lend.budget import Budget
from kvmarket.lend.lending import Lending, descriptor_of
from kvmarket.registry.client.asking import ask_space, ask_spaces
from kvmarket.registry.client.home import beside
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import MAX_POOLS
from kvmarket.support.supervised import survived

LOOK_SECONDS = 1.0  # between two looks at the spaces
TURN_SECONDS = 0.01  # between two turns, while nothing is new
COPY_SECONDS = 0.001  # while copies are under way
AGAIN_SECONDS = 10.0  # until a space that could not be joined is tried again
PRESSURE_SECONDS = 0.02  # between two looks whether memory must be given back

_log = logging.getLogger("kvmarket.lend")


class Lender:
    """Lends memory in all spaces of the market at an address, until `stop`. One thread calls `run`."""

    def __init__(self, address: str | None, budgets: Sequence[Budget]) -> None:
        """Begin with no space. Raises AddressError, and MisuseError without any memory to lend."""
        if not budgets:
            raise MisuseError("no memory to lend; give --host-gb, or --gpu and --gb")
        self.place, self._address = Address(address), address
        self._at = self.place  # where engines of our version meet
        self._budgets = budgets
        self._lendings: dict[str, Lending] = {}
        self._engines: dict[str, int] = {}  # number of engines by space
        self._tried: dict[str, float] = {}  # spaces that could not be joined -> when
        self._look_at = self._pressure_at = 0.0
        self._paused = threading.Event()
        self._stopped = threading.Event()
        self._wake = threading.Event()  # something must be done at once

    def run(self) -> None:
        """Lend until `stop`. Survives every exception of a turn, which is counted. Waits while there is no market."""
        while not self._stopped.is_set():
            busy = False
            with survived("the lender") as turn:
                busy = self.turn()
            self._wake.wait(COPY_SECONDS if busy and not turn.failed else TURN_SECONDS)

    def turn(self) -> bool:
        """Look at memory and spaces where that is due, and do some work in each; return whether more is to do soon."""
        now = time.monotonic()
        if now >= self._pressure_at or self._wake.is_set():
            self._wake.clear()
            self._pressure_at = now + PRESSURE_SECONDS
            for budget in self._budgets:
                self._heed_pressure(budget)
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return any([lending.turn(partial(self._more, lending)) for lending in list(self._lendings.values())])

    def pause(self) -> None:
        """Have `run` give all memory back, and lend none until `resume`. As `stop`."""
        self._paused.set()
        self._wake.set()

    def resume(self) -> None:
        """Lend again after `pause`. As `stop`."""
        self._paused.clear()

    def stop(self) -> None:
        """Make `run` return soon. May be called from any thread or signal handler."""
        self._stopped.set()
        self._wake.set()

    def close(self) -> None:
        """Leave all spaces: every offer is dead when this returns, and the memory is free."""
        for lending in self._lendings.values():
            lending.close()
        self._lendings.clear()

    def _heed_pressure(self, budget: Budget) -> None:
        """Give memory back: all while paused, else a segment if the device has too little free memory."""
        for lending in self._lendings.values() if self._paused.is_set() else ():
            lending.kill()
        while budget.lent and (self._paused.is_set() or budget.short):
            self._shrink(budget, [each for each in self._lendings.values() if self._budget(each) is budget])
            counters.add("segments_given_back")
            if not self._paused.is_set():
                return

    def _look(self) -> None:
        """Join spaces that have engines, where there is memory."""
        self._at = self.place
        try:
            try:
                spaces = ask_spaces(self.place).spaces
            except VersionError:  # engines of our version meet beside it
                self._at = beside(self.place)
                spaces = ask_spaces(self._at).spaces
        except RegistryError:  # no service: engines, or we as a member, start one
            return
        self._engines = {space.name: space.engines for space in spaces}
        now = time.monotonic()
        for name, engines in self._engines.items() if not self._paused.is_set() else ():
            if engines and name not in self._lendings and now - self._tried.get(name, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                self._join(name, now)

    def _join(self, space: str, now: float) -> None:
        try:
            told = ask_space(self._at, space)
            kind = descriptor_of(told).ranks[0][1].mapped_on
            budget = next((each for each in self._budgets if each.device.type == kind), None)
            if budget is None or not self._make_room(budget, None):
                self._tried[space] = now
                counters.add("lend_passed_over", reason=f"no memory to lend to engines whose caches are on {kind}")
                return
            lending = Lending(self._address, space, told, budget.segment_bytes, budget.device)
        except (KVMarketError, msgspec.DecodeError, RuntimeError) as error:
            self._tried[space] = now
            counters.add("lend_failed", reason=type(error).__name__, detail=error)
            return
        budget.lent += budget.segment_bytes
        self._lendings[space] = lending
        _log.info("lending %.1f GB to %s (%s)", lending.nbytes / 1e9, space, told.label.model or "no model named")

    def _more(self, lending: Lending) -> bool:
        """Give a lending one more segment, if there is memory or another one has more than its share."""
        budget = self._budget(lending)
        if lending.segments >= MAX_POOLS or not self._make_room(budget, lending):
            return False
        try:
            lending.add_segment(budget.segment_bytes)
        except (KVMarketError, RuntimeError) as error:
            budget.nbytes = budget.lent  # there is no more; what is lent goes on
            counters.add("lend_failed", reason=type(error).__name__, detail=error)
            return False
        budget.lent += budget.segment_bytes
        return True

    def _make_room(self, budget: Budget, taker: Lending | None) -> bool:
        """See that one more segment fits; return whether it does. `taker`: who asks; None for a space to be joined.

        Memory of spaces without engines is taken first, then that of the one which has most, if it keeps more than the
        taker.
        """
        while not budget.room:
            others = [each for each in self._lendings.values() if each is not taker and self._budget(each) is budget]
            idle = [each for each in others if not self._engines.get(each.space)]
            fair = max((each.segments for each in others), default=0) > (taker.segments if taker else 0) + 1
            if budget.short or not (idle or fair):
                return False
            self._shrink(budget, idle or others)
        return True

    def _shrink(self, budget: Budget, among: Sequence[Lending]) -> None:
        """Take a segment back from the lending with most of them; if that is its only one, leave its space."""
        largest = max(among, key=lambda each: each.segments)
        if largest.segments > 1:
            largest.take_back()
        else:
            self._lendings.pop(largest.space).close()
        budget.lent -= budget.segment_bytes

    def _budget(self, lending: Lending) -> Budget:
        return next(each for each in self._budgets if each.device == lending.device)
