"""What an engine that shares with nobody says of whoever is near: the fact to change, in its own log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sized

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.registry.client.home import Home
from kvmarket.registry.client.others import Apart
from kvmarket.registry.protocol.differences import Difference
from kvmarket.registry.protocol.neighbours import Kind, kind_of, said_of
from kvmarket.registry.protocol.status import Label

MOST_WARNINGS = 3  # of one engine, beside one line for each other kind of neighbour
MOST_NAMED = 3  # engines in one line, and facts of one engine
LOOKS = 3  # before it is said that nobody is near: the others may be starting
_ALONE = "kvmarket shares with nobody yet"

_log = logging.getLogger("vllm.kvmarket")


class Alone:
    """Says who is near one engine, in few lines, whatever comes and goes.

    A space of the same model, or one that differs in few facts, is a warning with these facts; each is named once, in
    at most `MOST_WARNINGS` lines. Other models are normal on a node, and so are other markets: one line for each kind
    of them names those that are seen first. Where nobody is near, a container says after a while which folder the
    others must have.
    """

    def __init__(self) -> None:
        """Nothing is said yet."""
        self._said: set[str] = set()
        self._warnings = 0
        self._looks = 0

    def say(self, home: Home) -> None:
        """Ask who is near, and say what has not been said. May take seconds."""
        if self._warnings == MOST_WARNINGS:
            return
        try:
            others = home.others()
        except (KVMarketError, OSError) as error:
            counters.add("lookout_failed", reason=type(error).__name__, detail=error)
            return
        like = [space for space in others.spaces if _resembles(space, home.label)]
        if new := self._unsaid(space.space for space in like):
            self._warnings += 1
            named = "; ".join(_differs(space) for space in like if space.space in new[:MOST_NAMED])
            self._write(logging.WARNING, f"{named}{_rest(new)}: see `kvmarket top --why --address {home.at}`")
        elif others.total > len(like) and self._unsaid(["other models"]):
            unlike = [_named(space.pid, space.label) for space in others.spaces if space not in like]
            self._write(
                logging.INFO, f"only engines of other models are in this market: {_listed(unlike, others.total)}"
            )
        for kind in Kind:
            markets = [market for market in others.markets if kind_of(market, home.address) is kind]
            if markets and self._unsaid([kind.name]):
                said = ", ".join(said_of(market, home.address) for market in markets[:MOST_NAMED])
                said = f"this engine is in the market {home.at}, and {said}{_rest(markets)}; {kind.value}"
                self._write(logging.INFO, said)
        self._looks += 1
        if others.folder and not (others.total or others.markets) and self._looks >= LOOKS and self._unsaid(["folder"]):
            self._write(logging.INFO, others.folder)

    def _unsaid(self, names: Iterable[str]) -> list[str]:
        """Those of these that were not said; they are from now on."""
        new = [name for name in names if name not in self._said]
        self._said.update(new)
        return new

    def _write(self, level: int, what: str) -> None:
        _log.log(level, "%s: %s", _ALONE, what)


def _resembles(space: Apart, label: Label) -> bool:
    """Whether an engine of that space could be meant to share with one that is called so."""
    one, other = (each.model.rstrip("/").rpartition("/")[2] for each in (space.label, label))
    return one == other or (space.differing is not None and len(space.differing) <= MOST_NAMED)


def _differs(space: Apart) -> str:
    who = f"{_named(space.pid, space.label)} is in the same market but differs"
    if space.differing is None:
        return f"{who} in facts that are not told here"
    facts = ", ".join(map(_fact, space.differing[:MOST_NAMED]))
    more = len(space.differing) - MOST_NAMED
    return f"{who} in {facts}" + (f" and {more} more fact(s)" if more > 0 else "")


def _fact(fact: Difference) -> str:
    return f"{fact.name} ({fact.one} here, {fact.other} there)"


def _named(pid: int, label: Label) -> str:
    """An engine, as `kvmarket top` names it."""
    called = [label.model, f"port {label.port}" if label.port else ""]
    return f"pid {pid} ({', '.join(filter(None, called))})" if any(called) else f"pid {pid}"


def _listed(named: list[str], count: int) -> str:
    more = count - len(named[:MOST_NAMED])
    return ", ".join(named[:MOST_NAMED]) + (f" and engines of {more} more" if more > 0 else "")


def _rest(new: Sized) -> str:
    more = len(new) - MOST_NAMED
    return f"; and {more} more" if more > 0 else ""
