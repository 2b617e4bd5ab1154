"""Messages for people and for lenders: what an engine says about itself, and what the service says about its spaces.

Nothing here decides which engines share blocks: only the name of their space does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from kvmarket.processes.shared_file import Process

MAX_NAME = 4096  # characters, of a space or a tenant
MAX_FACTS = 512
MAX_FACT_NAME, MAX_FACT_TEXT = 128, 64  # characters
FACT_DIGEST_BYTES = 8
FINGERPRINT = "fingerprint"  # the name of the fact that holds the hash of all facts of an engine
KIND, RANKS, SHAPE = OF_MEMORY = ("kind of memory", "ranks of each stage", "shape of a block")  # names of facts
MAX_LABEL = 128  # characters
MAX_COUNTERS, MAX_COUNTER_NAME = 128, 256  # of one process; characters

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
CounterName = Annotated[str, msgspec.Meta(max_length=MAX_COUNTER_NAME)]
Counts = Annotated[dict[CounterName, Count], msgspec.Meta(max_length=MAX_COUNTERS)]


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """One value that must agree within a space.

    `text` is for people and may be shortened. `digest` is a 64-bit hash of the whole value: compare digests, not texts.
    """

    name: Annotated[str, msgspec.Meta(max_length=MAX_FACT_NAME)]
    text: Annotated[str, msgspec.Meta(max_length=MAX_FACT_TEXT)]
    digest: Annotated[bytes, msgspec.Meta(min_length=FACT_DIGEST_BYTES, max_length=FACT_DIGEST_BYTES)]


Facts = Annotated[tuple[Fact, ...], msgspec.Meta(max_length=MAX_FACTS)]


class Label(msgspec.Struct, frozen=True):
    """The name of an engine for people: its model, and the port at which it serves (0: not known)."""

    model: Annotated[str, msgspec.Meta(max_length=MAX_LABEL)] = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


NO_LABEL = Label()


class Report(msgspec.Struct, frozen=True, tag="report"):
    """The counters of an engine's process (`kvmarket.counters`) since it started. The service sends no answer."""

    counters: Counts


def report_of(counts: Mapping[str, int]) -> Report:
    """Make a report of these counters that fits the bounds: shortened names, and at most `MAX_COUNTERS` counters."""
    names = sorted(counts)[:MAX_COUNTERS]
    return Report({name[:MAX_COUNTER_NAME].encode(errors="replace").decode(): counts[name] for name in names})


class AskStatus(msgspec.Struct, frozen=True, tag="ask-status"):
    """Ask for the `Status` of the market; with `facts`, also for the facts of the spaces."""

    facts: bool = False


class MemberStatus(msgspec.Struct, frozen=True):
    """One engine, or a lender. `counters`: from its last `Report`; empty before the first one."""

    pid: int
    space: str
    pools: int
    offers: int
    label: Label = NO_LABEL
    counters: dict[str, int] = {}
    lends: bool = False


class SpaceStatus(msgspec.Struct, frozen=True):
    """One space. `facts`: of its earliest present member; empty unless they were asked for."""

    name: str
    facts: tuple[Fact, ...] = ()


class Status(msgspec.Struct, frozen=True, tag="status"):
    """The answer to `AskStatus`.

    `blocks` counts a block once, however many engines offer it. `counters` are those of the service.
    """

    service: Process
    members: tuple[MemberStatus, ...]
    blocks: int
    counters: dict[str, int]
    spaces: tuple[SpaceStatus, ...] = ()


class AskSpaces(msgspec.Struct, frozen=True, tag="ask-spaces"):
    """Ask which spaces there are."""


class SpaceMembers(msgspec.Struct, frozen=True, array_like=True):
    """A space with the number of its engines, and of its lenders."""

    name: str
    engines: int
    lenders: int


class Spaces(msgspec.Struct, frozen=True, tag="spaces"):
    """The answer to `AskSpaces`."""

    spaces: tuple[SpaceMembers, ...]


class AskSpace(msgspec.Struct, frozen=True, tag="ask-space"):
    """Ask what a lender must know to join this space."""

    space: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class SpaceDescribed(msgspec.Struct, frozen=True, tag="space-described"):
    """The answer to `AskSpace`, from the earliest present member; `description`: of its first pool.

    The description is empty if there is no such space.
    """

    block_size: int = 0
    geometry: str = ""
    facts: tuple[Fact, ...] = ()
    label: Label = NO_LABEL
    description: bytes = b""


class AskOtherSpaces(msgspec.Struct, frozen=True, tag="ask-other-spaces"):
    """Ask who is in the market but not in this space, and so shares nothing with its engines."""

    space: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class OtherSpace(msgspec.Struct, frozen=True):
    """A space, by the engine that joined it first. `facts` are told of few spaces, and empty of the others."""

    name: str
    pid: int
    label: Label
    facts: tuple[Fact, ...] = ()


class OtherSpaces(msgspec.Struct, frozen=True, tag="other-spaces"):
    """The answer to `AskOtherSpaces`: some of the `total` other spaces, with engines of the same model first."""

    spaces: tuple[OtherSpace, ...]
    total: int
