"""Which facts of two spaces differ, as texts for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kvmarket.registry.protocol.status import FINGERPRINT, OF_MEMORY, Fact

NOT_GIVEN = "not given"


class Difference(NamedTuple):
    """One fact that differs: its name, and the texts of both values."""

    name: str
    one: str
    other: str


def differences(one: Sequence[Fact], other: Sequence[Fact]) -> list[Difference]:
    """The facts that differ, those with the shortest paths first.

    The fingerprint, which sums up the others, comes last, and only where they do not explain it.
    """
    first, second = ({fact.name: fact for fact in reversed(facts)} for facts in (one, other))
    names = dict.fromkeys(fact.name for facts in (one, other) for fact in facts)
    differing = [name for name in names if _digest(first.get(name)) != _digest(second.get(name))]
    told = sorted((name for name in differing if name != FINGERPRINT), key=lambda name: name.count("."))
    if FINGERPRINT in differing and set(told) <= set(OF_MEMORY):
        told.append(FINGERPRINT)
    return [Difference(name, *_texts(first.get(name), second.get(name))) for name in told]


def _digest(fact: Fact | None) -> bytes:
    return fact.digest if fact else b""


def _texts(one: Fact | None, other: Fact | None) -> tuple[str, str]:
    """Both texts; with digests where the texts alone do not differ."""
    if one and other and one.text == other.text:
        first, second = (f"{fact.text} (digest {fact.digest.hex()[:8]})" for fact in (one, other))
        return first, second
    return one.text if one else NOT_GIVEN, other.text if other else NOT_GIVEN
