"""The interface of a way to move blocks, and the set of ways of one mover, which picks one way for each copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from kvmarket.kernels import can_sum
from kvmarket.kernels.addresses.tables import Table, table_of
from kvmarket.layout.paged import SlotArray
from kvmarket.ways.choice import Candidate, Case, Choice, Rate, load
from kvmarket.ways.copying import Copy, Int64s


class Job(Protocol):
    """One copy, ready to be launched; made by the way that was chosen for it."""

    threaded: bool  # whether `launch` takes so long that the mover's thread must call it

    def launch(self) -> None:
        """Launch the whole copy, so that later work on the mover's first stream waits for it. On a CPU: copy.

        Called once.
        """

    def finish(self) -> Int64s | None:
        """Return the sums of the blocks (without SEED) if the copy was summed, else None. Called once, at the end."""


@dataclass(eq=False)
class Means:
    """What a mover gives its ways: its own slots, its streams (none on a CPU), the most programs of a kernel."""

    own: SlotArray
    streams: tuple[torch.cuda.Stream, ...] = ()
    programs: int | None = None


Maker = Callable[[Copy], Job | None]


class Way(Protocol):
    """One way to move blocks into the slots of one mover. A mover makes an instance of each way in its list.

    The first way of a list must prepare every source and take every copy: it is used where no other can be.
    """

    candidate: ClassVar[Candidate]
    rates: ClassVar[tuple[Rate, ...]] = ()  # built in: used for a pair of devices that was never measured
    cases: ClassVar[tuple[Case, ...]] = ()  # the layouts with which `kvmarket doctor --measure` measures it

    def __init__(self, means: Means) -> None:
        """Make the way for the mover that has these means. Allocate nothing large: the way may never be used."""

    @classmethod
    def available(cls) -> bool:
        """Whether this machine can use this way at all."""
        return True

    def prepare(self, source: SlotArray) -> Maker | None:
        """Do the work that copies from `source` need once, such as compiling; it may take seconds.

        Returns a function that makes the job of a copy from `source`, or None if this way cannot copy from there. The
        function must not keep `source` alive. It returns None where this way cannot be used at the moment; the copy
        then takes the first way of the list. Raises RuntimeError.
        """

    def takes(self, copy: Copy, table: Table) -> bool:
        """Whether this way may be chosen for `copy`; asked for every copy. `table`: the fragments of the two arrays."""
        return True


class Link(NamedTuple):
    """What all copies from one source share: the first way, and the other ways that can copy from it, in order."""

    table: Table
    summable: bool
    choice: Choice
    first: Candidate
    others: tuple[tuple[Candidate, Callable[[Copy, Table], bool]], ...]  # each with its `Way.takes`
    makers: dict[str, Maker]

    def able(self, copy: Copy) -> tuple[Candidate, ...]:
        """The ways that may be chosen for `copy`."""
        return (self.first, *[way for way, takes in self.others if takes(copy, self.table)])


class Ways:
    """The ways of one mover. Thread-safe."""

    def __init__(
        self,
        means: Means,
        kinds: Sequence[type[Way]],
        idle: Callable[[], bool],
        reader: str = "",
        choice: Choice | None = None,
    ) -> None:
        """Make one way of each of `kinds` that is available. `idle` says whether no other copy is under way.

        `reader`: the UUID of the mover's GPU; empty on a CPU. `choice` picks the way of every copy; None picks by the
        rates measured between the two GPUs, or built in.
        """
        self._own, self._reader, self._idle = means.own, reader, idle
        self.choice = choice
        self._built_in = built_in(kinds)
        self._ways = [kind(means) for kind in kinds if kind.available()]
        self._links: WeakKeyDictionary[SlotArray, Link] = WeakKeyDictionary()

    def prepare(self, source: SlotArray, owner: str = "") -> Link:
        """Prepare every way for copies from `source`: seconds where kernels compile, once per pair of layouts.

        `owner`: the UUID of the GPU that holds `source`. Raises RuntimeError.
        """
        made = [(way, make) for way in self._ways if (make := way.prepare(source)) is not None]
        first, *others = [(way.candidate, way.takes) for way, _ in made]
        choice = load(self._reader, owner, self._built_in) if self._reader else self._built_in
        makers = {way.candidate.name: make for way, make in made}
        table, summable = table_of(source, self._own), can_sum(source, self._own)
        link = Link(table, summable, choice, first[0], tuple(others), makers)
        self._links[source] = link
        return link

    def job(self, copy: Copy) -> Job:
        """Make the job of `copy`, by the way chosen for it. Costs about 1.5 us if there are several ways, else 0.5 us.

        A copy that cannot be summed is made without sums. A source that was not prepared is prepared first (seconds).
        """
        link = self._links.get(copy.source) or self.prepare(copy.source)
        if copy.summed and not link.summable:
            copy = copy._replace(summed=False)
        chosen = first = link.first.name
        if link.others:
            nbytes, choice = len(copy.slots) * self._own.layout.slot_bytes, self.choice or link.choice
            chosen = choice.way(nbytes, link.table.length, link.able(copy), busy=not self._idle())
        job = link.makers[chosen](copy) or link.makers[first](copy)
        assert job is not None, "the first way takes every copy"
        return job

    def describe(self) -> str:
        """Name the ways that copies from slots with the layout of our own may take."""
        link, none = self._links[self._own], np.empty(0, np.int64)
        plain = Copy(self._own, none, none, summed=False)
        return " or ".join(f"{way.name} (no SM)" if way.sparing else way.name for way in link.able(plain))


def built_in(kinds: Sequence[type[Way]]) -> Choice:
    """The choice by the built-in rates of these kinds of ways."""
    return Choice(rate for kind in kinds for rate in kind.rates)
