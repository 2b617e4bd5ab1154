"""Facts as short texts and digests, for people who want to know what keeps two engines apart."""

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

from kvmarket.facts import encoded
from kvmarket.registry.protocol.status import FACT_DIGEST_BYTES, MAX_FACT_NAME, MAX_FACT_TEXT, Fact

MOST_FACTS = 500  # of one fingerprint; the kind of memory and the geometry come beside them
DEEPEST = 20
OTHERS = "all other facts"
_DIGITS = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b")  # of a checksum: the first ones tell it from another
_SECRET = re.compile(
    r"(^|_|\.)(secret|password|passwd|credential|(api|private)_?key|(auth|access|hf)_?token)s?$", re.IGNORECASE
)


def described(facts: Mapping[str, object]) -> tuple[Fact, ...]:
    """These facts one by one, at most `MOST_FACTS` of them.

    What is in a mapping, or in the fields of a dataclass, is a fact of its own (``model_config.dtype``), as deep as the
    bound permits; what is deeper is one digest. What is called a secret is shown by its digest alone. Raises
    FingerprintError for values without an exact encoding. Costs some 20 us a fact, and a pass over arrays.
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
    """One fact: its name, a text of at most `MAX_FACT_TEXT` characters, and a digest of all of its value."""
    digest = xxhash.xxh3_64_digest(encoded({"": value}))[:FACT_DIGEST_BYTES]
    text = f"not shown, digest {digest.hex()}" if _SECRET.search(name) else _text(value)
    return Fact(_shortened(_printable(name), MAX_FACT_NAME), _shortened(_printable(text), MAX_FACT_TEXT), digest)


def _held(name: str, value: object) -> list[tuple[str, object]]:
    """What `value` holds by name, under longer names; itself where it holds nothing by name."""
    return [(f"{name}.{_printable(key)}", item) for key, item in _items(value) or ()] or [(name, value)]


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """What `value` holds by name, or by number where that has names in turn; None for a plain value."""
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
    """A text for people; different values may have the same one."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray) or (torch is not None and isinstance(value, torch.Tensor)):
        return f"{str(value.dtype).removeprefix('torch.')} array of shape {tuple(value.shape)}"
    if isinstance(value, enum.Enum):
        return str(value.name)
    if isinstance(value, str):
        return str.__str__(value) or "empty"
    if isinstance(value, int) and not isinstance(value, bool):
        number = int(value)  # without what a class of its own makes of it
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
    """As many of these as are shown of them."""
    found, length = [], 0
    for text in texts:
        found.append(text)
        length += len(text) + 2
        if length > MAX_FACT_TEXT + 32:  # a checksum among them gets shorter
            break
    return ", ".join(found)


def _printable(text: str) -> str:
    """`text` without what a terminal obeys, or what cannot be sent."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _shortened(text: str, most: int) -> str:
    text = _DIGITS.sub(r"\1…", text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
