"""What an engine tells about itself for people to read, and what the service answers to `kvmarket top`.

Nothing here decides who shares with whom: the name of a space does.
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
FINGERPRINT = "fingerprint"  # the name of the fact that sums up all facts which an engine gives
KIND, RANKS, SHAPE = OF_MEMORY = ("kind of memory", "ranks of each stage", "shape of a block")  # names of facts
MAX_LABEL = 128  # characters
MAX_COUNTERS, MAX_COUNTER_NAME = 128, 256  # of one process; characters

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
CounterName = Annotated[str, msgspec.Meta(max_length=MAX_COUNTER_NAME)]
Counts = Annotated[dict[CounterName, Count], msgspec.Meta(max_length=MAX_COUNTERS)]


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """One value that must agree within a space.

    `text` is for people and may be shortened. `digest` is of the whole value: two values are equal exactly when their
    digests are.
    """

    name: Annotated[str, msgspec.Meta(max_length=MAX_FACT_NAME)]
    text: Annotated[str, msgspec.Meta(max_length=MAX_FACT_TEXT)]
    digest: Annotated[bytes, msgspec.Meta(min_length=FACT_DIGEST_BYTES, max_length=FACT_DIGEST_BYTES)]


Facts = Annotated[tuple[Fact, ...], msgspec.Meta(max_length=MAX_FACTS)]


class Label(msgspec.Struct, frozen=True):
    """What people call an engine: the name of its model, and the port at which it serves (0: not known)."""

    model: Annotated[str, msgspec.Meta(max_length=MAX_LABEL)] = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


NO_LABEL = Label()


class Report(msgspec.Struct, frozen=True, tag="report"):
    """The counters of an engine's process (`kvmarket.counters`) since it started. Not answered."""

    counters: Counts


def report_of(counts: Mapping[str, int]) -> Report:
    """These counters as they can be sent: names are shortened, and at most `MAX_COUNTERS` of them are told."""
    names = sorted(counts)[:MAX_COUNTERS]
    return Report({name[:MAX_COUNTER_NAME].encode(errors="replace").decode(): counts[name] for name in names})


class AskStatus(msgspec.Struct, frozen=True, tag="ask-status"):
    """Ask what the market holds; with `facts`, also the facts of every space."""

    facts: bool = False


class MemberStatus(msgspec.Struct, frozen=True):
    """One engine. `counters`: those of its last `Report`; empty before the first one."""

    pid: int
    space: str
    pools: int
    offers: int
    label: Label = NO_LABEL
    counters: dict[str, int] = {}


class SpaceStatus(msgspec.Struct, frozen=True):
    """One space. `facts`: those of the engine that joined it first; empty unless they were asked for."""

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
