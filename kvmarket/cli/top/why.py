"""Compare the spaces of a market pair by pair: which facts differ, so that their engines do not share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from kvmarket.registry.protocol.status import FINGERPRINT, OF_MEMORY, Fact, SpaceStatus, Status

MOST_SHOWN = 20  # facts of one pair
NOT_GIVEN = "not given"


def comparison_of(status: Status) -> Group:
    """For each pair of spaces, the engines in them and the facts that differ; one line if there is only one space."""
    pids: dict[str, list[int]] = {}
    for member in status.members:
        pids.setdefault(member.space, []).append(member.pid)
    if len(pids) < 2:
        return Group(Text(_alone(list(itertools.chain(*pids.values())))))
    shown: list[Text | Padding] = []
    for one, other in itertools.combinations(status.spaces, 2):
        shown.append(Text(f"{_named(pids[one.name])} and {_named(pids[other.name])} do not share:"))
        shown += [Padding(Text(line), (0, 0, 0, 2)) for line in differences(one, other)]
    return Group(*shown)


def differences(one: SpaceStatus, other: SpaceStatus) -> Iterator[str]:
    """The facts that differ between two spaces, one line each; facts with fewer dots in their names come first."""
    if not one.facts or not other.facts:
        yield "their facts are not told: the service tells those of its first spaces alone"
        return
    first, second = ({fact.name: fact for fact in reversed(space.facts)} for space in (one, other))
    names = dict.fromkeys(fact.name for space in (one, other) for fact in space.facts)
    differing = [name for name in names if _digest(first.get(name)) != _digest(second.get(name))]
    told = sorted((name for name in differing if name != FINGERPRINT), key=lambda name: name.count("."))
    for name in told[:MOST_SHOWN]:
        yield f"{name} is {_pair(first.get(name), second.get(name))}"
    if len(told) > MOST_SHOWN:
        yield f"and {len(told) - MOST_SHOWN} more facts"
    if FINGERPRINT in differing and set(told) <= set(OF_MEMORY):
        yield f"{FINGERPRINT} is {_pair(first.get(FINGERPRINT), second.get(FINGERPRINT))}, and no facts of it differ"


def _alone(pids: list[int]) -> str:
    if not pids:
        return "no engine has joined"
    if len(pids) == 1:
        return f"{_named(pids)} is alone in the market"
    return f"{_named(pids)} are all in one space, and share"


def _named(pids: list[int]) -> str:
    return f"pid{'s' if len(pids) > 1 else ''} {', '.join(map(str, sorted(pids)))}"


def _digest(fact: Fact | None) -> bytes:
    return fact.digest if fact else b""


def _pair(one: Fact | None, other: Fact | None) -> str:
    """The texts of both facts; with their digests if the texts are equal."""
    texts = [fact.text if fact else NOT_GIVEN for fact in (one, other)]
    if one and other and one.text == other.text:
        texts = [f"{fact.text} (digest {fact.digest.hex()[:8]})" for fact in (one, other)]
    return " / ".join(texts)
