"""A lender: follows every space of a market in which there are engines, and shares its memory out among them."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from kvmarket import counters
from kvmarket.errors import KVMarketError, LayoutError, MisuseError
from kvmarket.lend.budget import MOST_SEGMENTS, Budget
from kvmarket.lend.lending import Lending
from kvmarket.lend.resize.listening import Requests
from kvmarket.lend.resize.messages import Lent, Memory, Question, Resize
from kvmarket.lend.segment import block_bytes
from kvmarket.lend.spaces import SpaceWatch
from kvmarket.market.offer import descriptor_of
from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import SpaceDescribed
from kvmarket.support.supervised import survived

TURN_SECONDS = 0.01  # between two turns, while nothing is new
COPY_SECONDS = 0.001  # while copies are under way
AGAIN_SECONDS = 10.0  # until what failed is tried again
PRESSURE_SECONDS = 0.02  # between two looks whether memory must be given back

_log = logging.getLogger("kvmarket.lend")


class Lender:
    """Lends memory in all spaces of the market at an address, until `stop`. One thread calls `run`."""

    def __init__(self, address: str | None, budgets: Sequence[Budget]) -> None:
        """Begin with no space. Raises AddressError, and MisuseError without any memory to lend."""
        if not budgets:
            raise MisuseError("no memory to lend; give --host-gb, or --gpu and --gb")
        self.place, self._address = Address(address), address
        self._budgets = budgets
        self._lendings: dict[tuple[str, Budget], Lending] = {}  # by space and memory
        # What could not be joined, or got no memory -> until when
        self._not_before: dict[tuple[str, Budget], float] = {}
        self._requests: Requests | None = None
        self._pressure_at = 0.0
        self._paused = self._stopped = False  # other threads set them
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._spaces = SpaceWatch(self.place)

    def listen(self) -> None:
        """Have `run` answer other processes of this user that ask for another size (see `resize`). Call it before.

        Only one lender of a process may listen: its socket is named after the process.
        """
        self._requests = Requests(self.place, self._answer)

    def run(self) -> None:
        """Lend until `stop`. Survives every exception of a turn, which is counted. Waits while there is no market."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._stopped:
            busy = False
            with survived("the lender") as turn:
                busy = self.turn()
            poll.poll(1e3 * (COPY_SECONDS if busy and not turn.failed else TURN_SECONDS))
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
                self._pressure_at = 0.0

    def turn(self) -> bool:
        """Look at memory and spaces, and do some work in each; return whether there is more to do soon."""
        if self._requests is not None:
            self._requests.turn()
        now = time.monotonic()
        if now >= self._pressure_at:
            self._pressure_at = now + PRESSURE_SECONDS
            paused = self._paused  # once: what is killed must be given back, also if a signal resumes meanwhile
            for each in self._lendings.values() if paused else ():
                each.kill()
            for budget in self._budgets:
                self._heed_pressure(budget, paused=paused)
        for name, told in self._spaces.described.items() if not self._paused else ():
            for budget in (each for each in self._budgets if each.nbytes):
                where = name, budget
                if where not in self._lendings and now >= self._not_before.get(where, 0.0):
                    self._join(where, told)
        busy = False
        for where in list(self._lendings):
            lending = self._lendings.get(where)  # none if it was left so that another one gets its memory
            with survived("lending in one space"):
                busy = (lending is not None and lending.turn(partial(self._more, where))) or busy
        return busy

    def pause(self) -> None:
        """Have `run` give all memory back, and lend none until `resume`. As `stop`."""
        self._paused = True
        os.eventfd_write(self._wake, 1)

    def resume(self) -> None:
        """Lend again after `pause`, also where memory could not be had before. As `stop`."""
        self._paused = False
        self._not_before = {}

    def resize(self, sizes: Mapping[int | None, int]) -> None:
        """Lend up to so many bytes of the GPU with each number, or of the host (None), from now on; 0 is none.

        Gives segments back, as `pause` does, until what is lent fits; a space whose last one goes is joined anew with
        smaller ones. Costs what that costs: 0.2 s a GB. Called by the thread of `run`. Raises MisuseError, before
        anything is changed, for memory that this lender does not lend.
        """
        budgets = {budget.number: budget for budget in self._budgets}
        if missing := [number for number in sizes if number not in budgets]:
            raise MisuseError(f"this lender lends nothing of {missing}, but of {list(budgets)} (GPUs; None: the host)")
        for number, nbytes in sizes.items():
            budgets[number].resize(nbytes)
        for budget in (budgets[number] for number in sizes):
            for each in self._of(budget).values() if not budget.nbytes else ():
                each.kill()
            self._heed_pressure(budget, paused=False)
        self._not_before = {}

    def stop(self) -> None:
        """Make `run` return soon. May be called from any thread, before `close`."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Leave all spaces: every offer is dead when this returns, and the memory is free. Removes the socket."""
        if self._requests is not None:
            self._requests.close()
        for lending in self._lendings.values():
            lending.close()
        self._lendings.clear()
        self._spaces.close()
        os.close(self._wake)

    def _heed_pressure(self, budget: Budget, *, paused: bool) -> None:
        """Give memory back: all if `paused`, what is over, and a segment if the device has too little free memory."""
        while budget.lent and (paused or budget.over or budget.short):
            self._shrink(budget, self._of(budget))
            counters.add("segments_given_back")
            if not (paused or budget.over):
                return

    def _join(self, where: tuple[str, Budget], told: SpaceDescribed) -> None:
        """Join a space with a first segment, if there is memory for one; if not, or if it fails, try again later."""
        space, budget = where
        self._not_before[where] = time.monotonic() + AGAIN_SECONDS
        try:
            descriptor = descriptor_of(told.description)
            kind = descriptor.ranks[0][1].mapped_on
            device = budget.place(kind)
            if device is not None and budget.segment_bytes < (least := block_bytes(descriptor.stages)):
                raise LayoutError(f"a segment of {budget.segment_bytes} bytes holds no block of {least}; lend more")
            if device is None or not self._make_room(budget, None):
                counters.add("lend_passed_over", reason=f"no memory to lend to engines whose caches are on {kind}")
                return
            far = budget.far(kind)
            lending = Lending(self._address, space, told, budget.segment_bytes, device, far=far)
        except (KVMarketError, msgspec.DecodeError, RuntimeError) as error:
            counters.add("lend_failed", reason=type(error).__name__, detail=error)
            return
        self._lendings[where] = lending
        self._count(budget)
        self._not_before.pop(where, None)
        of_host = " of host memory" if far else ""
        model = told.label.model or "no model named"
        _log.info("lending %.1f GB%s to %s (%s)", lending.nbytes / 1e9, of_host, space, model)

    def _more(self, where: tuple[str, Budget]) -> bool:
        """Give a lending one more segment, if there is memory or another one has more than its share."""
        lending, budget, now = self._lendings[where], where[1], time.monotonic()
        if now < self._not_before.get(where, 0.0) or not self._make_room(budget, lending):
            return False
        try:
            if lending.segments >= MOST_SEGMENTS:  # some are of a smaller budget: a larger one takes the place of one
                lending.take_back(smallest=True)
            lending.add_segment(budget.segment_bytes)
        except (KVMarketError, RuntimeError) as error:
            self._not_before[where] = now + AGAIN_SECONDS
            counters.add("lend_failed", reason=type(error).__name__, detail=error)
            return False
        finally:
            self._count(budget)
        return True

    def _make_room(self, budget: Budget, taker: Lending | None) -> bool:
        """See that one more segment fits; return whether it does. `taker`: who asks; None for a space to be joined.

        If all memory is lent, takes a segment from the space without engines that has most, or else from the space that
        has most, if it keeps more than the taker. Nothing is taken where it is others who need the memory.
        """
        while budget.spent:  # more than once only where others have smaller segments, of a smaller budget
            others = {where: each for where, each in self._of(budget).items() if each is not taker}
            idle = {where: each for where, each in others.items() if not self._spaces.engines.get(each.space)}
            fair = max((each.segments for each in others.values()), default=0) > (taker.segments if taker else 0) + 1
            if not (idle or fair):
                break
            self._shrink(budget, idle or others)
        return budget.room

    def _shrink(self, budget: Budget, among: Mapping[tuple[str, Budget], Lending]) -> None:
        """Take a segment back from the lending with most of them; if that is its only one, leave its space."""
        where, largest = max(among.items(), key=lambda each: each[1].segments)
        try:
            if largest.segments > 1:
                largest.take_back()
            else:
                self._lendings.pop(where).close()
        finally:
            self._count(budget)

    def _count(self, budget: Budget) -> None:
        """Note how much of this memory is lent now."""
        budget.lent = sum(each.nbytes for each in self._of(budget).values())

    def _answer(self, question: Question) -> Lent:
        """Do what another process asks for, and say what is lent after it. Raises MisuseError as `resize`."""
        if isinstance(question, Resize):
            self.resize({size.gpu: size.nbytes for size in question.sizes})
        memories = [Memory(each.number, each.nbytes, each.lent, each.keep_free) for each in self._budgets]
        return Lent(Process.current(), tuple(memories), self._paused)

    def _of(self, budget: Budget) -> dict[tuple[str, Budget], Lending]:
        """What this memory is lent to."""
        return {where: lending for where, lending in self._lendings.items() if where[1] is budget}
