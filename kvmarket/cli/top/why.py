"""Compare the spaces of a market pair by pair: which facts differ, so that their engines do not share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from kvmarket.registry.protocol.differences import differences
from kvmarket.registry.protocol.status import FINGERPRINT, SpaceStatus, Status

MOST_SHOWN = 20  # facts of one pair


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
        shown += [Padding(Text(line), (0, 0, 0, 2)) for line in lines_of_differences(one, other)]
    return Group(*shown)


def lines_of_differences(one: SpaceStatus, other: SpaceStatus) -> Iterator[str]:
    """The facts that differ between two spaces, one line each; facts with fewer dots in their names come first."""
    if not one.facts or not other.facts:
        yield "their facts are not told: the service tells those of its first spaces alone"
        return
    found = differences(one.facts, other.facts)
    for name, here, there in found[:MOST_SHOWN]:
        yield f"{name} is {here} / {there}" + (", and no facts of it differ" if name == FINGERPRINT else "")
    if len(found) > MOST_SHOWN:
        yield f"and {len(found) - MOST_SHOWN} more facts"


def _alone(pids: list[int]) -> str:
    if not pids:
        return "no engine has joined"
    if len(pids) == 1:
        return f"{_named(pids)} is alone in the market"
    return f"{_named(pids)} are all in one space, and share"


def _named(pids: list[int]) -> str:
    return f"pid{'s' if len(pids) > 1 else ''} {', '.join(map(str, sorted(pids)))}"
