"""Facts as short texts and digests: they show people which fact makes the fingerprints of two engines differ."""

from __future__ import annotations

import dataclasses
import enum
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np
import xxhash

from kvmarket.fact_bytes import encoded
from kvmarket.registry.protocol.status import FACT_DIGEST_BYTES, MAX_FACT_NAME, MAX_FACT_TEXT, Fact

MOST_FACTS = 500  # of one fingerprint; the kind of memory and the geometry are sent in addition
DEEPEST = 20  # levels of mappings and dataclasses that are opened
OTHERS = "all other facts"
_DIGITS = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b")  # of a checksum: only the first 8 digits are shown
_SECRET = re.compile(
    r"(^|_|\.)(secret|password|passwd|credential|(api|private)_?key|(auth|access|hf)_?token)s?$", re.IGNORECASE
)


def described(facts: Mapping[str, object]) -> tuple[Fact, ...]:
    """List the facts, sorted by name, as at most `MOST_FACTS` texts with digests.

    Each item of a mapping and each field of a dataclass becomes a fact of its own (``model_config.dtype``), level by
    level while the number stays within the bound; deeper values stay together in one fact. A fact whose name says that
    it is a secret is shown by its digest only. Raises FingerprintError for values without an exact encoding. Costs
    about 20 us a fact, and a pass over arrays.
    """
    leaves = [(_printable(name), facts[name]) for name in sorted(facts)]
    if len(leaves) > MOST_FACTS:
        first = dict(leaves[: MOST_FACTS - 1])
        others = {name: value for name, value in facts.items() if _printable(name) not in first}
        return (*(fact(name, value) for name, value in first.items()), fact(OTHERS, others))
    for _ in range(DEEPEST):
        deeper = [held for name, value in leaves for held in _held(name, value)]
        if len(deeper) > MOST_FACTS or [name for name, _ in deeper] == [name for name, _ in leaves]:
            break
        leaves = deeper
    return tuple(fact(name, value) for name, value in leaves)


def fact(name: str, value: object) -> Fact:
    """Describe one fact: its name, a text of at most `MAX_FACT_TEXT` characters, and a digest of the whole value."""
    digest = xxhash.xxh3_64_digest(encoded({"": value}))[:FACT_DIGEST_BYTES]
    text = f"not shown, digest {digest.hex()}" if _SECRET.search(name) else _text(value)
    return Fact(_shortened(_printable(name), MAX_FACT_NAME), _shortened(_printable(text), MAX_FACT_TEXT), digest)


def _held(name: str, value: object) -> list[tuple[str, object]]:
    """The items of `value`, each named ``name.key``; ``[(name, value)]`` where it has none."""
    return [(f"{name}.{_printable(key)}", item) for key, item in _items(value) or ()] or [(name, value)]


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """Name and value of each item or field of `value`; None for a plain value.

    The items of a list are named by number, and count only where at least one of them has named items itself.
    """
    if isinstance(value, Mapping):
        return [(key if isinstance(key, str) else _text(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        nested = any(_items(item) for item in value)
        return [(str(number), item) for number, item in enumerate(value)] if nested else None
    if isinstance(value, enum.Enum | type):
        return None
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, msgspec.Struct):
        return [(name, getattr(value, name)) for name in value.__struct_fields__]
    return None


def _text(value: Any) -> str:
    """A text for people. Different values may have the same text."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor)):
        return f"{str(value.dtype).removeprefix('torch.')} array of shape {tuple(value.shape)}"
    if isinstance(value, enum.Enum):
        return str(value.name)
    if isinstance(value, str):
        return str.__str__(value) or "empty"
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)  # a derived class may have its own __str__
        return str(number) if number.bit_length() <= 128 else hex(number)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{_joined(map(_text, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{_joined(sorted(map(_text, value)))}}}"
    if items := _items(value):
        return f"{len(items)} values"
    return str(value).removeprefix("torch.")


def _joined(texts: Iterable[str]) -> str:
    """Join the first of these texts, up to the length that is shown."""
    found, length = [], 0
    for text in texts:
        found.append(text)
        length += len(text) + 2
        if length > MAX_FACT_TEXT + 32:  # a checksum among them is shortened later
            break
    return ", ".join(found)


def _printable(text: str) -> str:
    """`text` with "?" for every character that is not printable: terminals obey some, and some cannot be sent."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _shortened(text: str, most: int) -> str:
    text = _DIGITS.sub(r"\1…", text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
