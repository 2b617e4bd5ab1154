"""What must agree before KV may be reused, hashed to 128 bits.

Two engines share blocks only if their fingerprints are equal. Whatever changes a byte of the KV cache belongs into it:
model and revision, dtype, quantization, rope scaling, tensor-parallel rank count, an epoch of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import xxhash

from kvmarket.errors import FingerprintError, MisuseError


class Fingerprint(msgspec.Struct, frozen=True):
    """A 128-bit hash of facts, as 32 hexadecimal digits; equal facts give equal fingerprints in every process."""

    hex: str

    def __post_init__(self) -> None:
        """Refuse anything but 32 hexadecimal digits."""
        if len(self.hex) != 32 or any(c not in "0123456789abcdef" for c in self.hex):
            raise FingerprintError(f"{self.hex!r} is not 32 hexadecimal digits; make it with Fingerprint.of(...)")

    @classmethod
    def of(cls, **facts: object) -> Fingerprint:
        """Hash `facts`: their order does not matter, every one counts, and so does the type of its value.

        Values may be None, bool, int, float, str, bytes, nested lists, tuples, sets and mappings of these; a torch
        dtype or anything else whose `str` names it fully is told apart by type and text. Raises FingerprintError when
        there are no facts, or for a value whose text holds a memory address (it would differ in every process).
        """
        if not facts:
            raise FingerprintError("no facts given; name at least the model: Fingerprint.of(model=..., dtype=...)")
        return cls(xxhash.xxh3_128_hexdigest(_canonical(facts).encode()))


def _canonical(value: object) -> str:
    """Text of `value` that is the same in every process and different for different values."""
    if value is None or isinstance(value, bool | int | str | bytes):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, float):
        if math.isnan(value):
            raise FingerprintError("a fact is NaN, which equals nothing; leave it out or name it by a string")
        return f"float:{value.hex()}"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_canonical(k)}={_canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(v) for v in value) + "]"
    if isinstance(value, set | frozenset):
        return "<" + ",".join(sorted(_canonical(v) for v in value)) + ">"
    text = str(value)
    if " at 0x" in text:
        raise FingerprintError(f"the fact {text} has no stable text; give its name or its fields instead")
    return f"{type(value).__module__}.{type(value).__qualname__}:{text!r}"


def check_identity(fingerprint: Fingerprint, tenant: str) -> None:
    """Raise FingerprintError or MisuseError unless these can name who shares with whom."""
    if not isinstance(fingerprint, Fingerprint):
        raise FingerprintError(
            f"fingerprint is a {type(fingerprint).__name__}; make it with Fingerprint.of(model=..., dtype=...)"
        )
    if not isinstance(tenant, str):
        raise MisuseError(f"tenant is a {type(tenant).__name__}; give a string")
