"""What a way to move blocks is, and the ways of one mover, of which it takes one for each copy."""

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
    """One copy, ready to be launched by the way that was taken for it."""

    threaded: bool  # whether `launch` takes so long that a thread of the mover's makes the call

    def launch(self) -> None:
        """Launch all of it, so that the mover's first stream has it behind it; on a CPU, copy. Called once."""

    def finish(self) -> Int64s | None:
        """Return the checksums of its blocks if the copy was summed, else None. Called once, when it is done."""


@dataclass(eq=False)
class Means:
    """What a mover gives to its ways: its own slots, its streams (none on a CPU), a bound on programs of a kernel."""

    own: SlotArray
    streams: tuple[torch.cuda.Stream, ...] = ()
    programs: int | None = None


Maker = Callable[[Copy], Job | None]


class Way(Protocol):
    """One way to move blocks into the slots of one mover, which makes one of each that is in its list.

    The first way of a list is the one for whatever no other can take: it prepares every source and takes every copy.
    """

    candidate: ClassVar[Candidate]
    rates: ClassVar[tuple[Rate, ...]] = ()  # built in: what counts for a pair of devices that was never measured
    cases: ClassVar[tuple[Case, ...]] = ()  # the layouts with which `kvmarket doctor --measure` measures it

    def __init__(self, means: Means) -> None:
        """Of the mover that has these means. Allocate nothing large: it may never be taken."""

    @classmethod
    def available(cls) -> bool:
        """Whether this machine can go this way at all."""
        return True

    def prepare(self, source: SlotArray) -> Maker | None:
        """Do ahead what the first copy from `source` would do once, such as compiling: it may take seconds.

        What is returned makes the jobs of copies from `source`, and does not hold `source`, or it would never die; it
        returns None when it cannot go just now, and the first way of the list is taken. None instead of it: this way
        moves nothing from there. Raises RuntimeError.
        """

    def takes(self, copy: Copy, table: Table) -> bool:
        """Whether it may be chosen for `copy`; `table` has the fragments of the two arrays. Asked for every copy."""
        return True


class Link(NamedTuple):
    """What is the same in every copy from one source: the first way, and the others that go there, in order."""

    table: Table
    summable: bool
    choice: Choice
    first: Candidate
    others: tuple[tuple[Candidate, Callable[[Copy, Table], bool]], ...]  # with what says whether it takes a copy
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
        """One of each of `kinds` that this machine has. `idle` says whether no other copy is under way.

        `reader`: the UUID of the mover's GPU, if it is one. `choice` picks the way of every copy; None for what was
        measured between the two GPUs, or is built in.
        """
        self._own, self._reader, self._idle = means.own, reader, idle
        self.choice = choice
        self._built_in = built_in(kinds)
        self._ways = [kind(means) for kind in kinds if kind.available()]
        self._links: WeakKeyDictionary[SlotArray, Link] = WeakKeyDictionary()

    def prepare(self, source: SlotArray, owner: str = "") -> Link:
        """Prepare every way for copies from `source`: seconds where kernels compile, once per pair of layouts.

        `owner`: the UUID of the GPU that it lies on. Raises RuntimeError.
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
        """Make the job of `copy`, by the way chosen for it. Costs some 1.5 us where there is a choice, else 0.5."""
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
        """Name the ways that copies from slots like our own may take."""
        link, none = self._links[self._own], np.empty(0, np.int64)
        plain = Copy(self._own, none, none, summed=False)
        return " or ".join(f"{way.name} (no SM)" if way.sparing else way.name for way in link.able(plain))


def built_in(kinds: Sequence[type[Way]]) -> Choice:
    """The choice by the rates that are built into ways of these kinds."""
    return Choice(rate for kind in kinds for rate in kind.rates)
