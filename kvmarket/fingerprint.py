"""What must agree before KV may be reused, hashed to 128 bits.

Two engines share blocks only if their fingerprints are equal. Whatever changes a byte of the KV cache belongs into it:
model and revision, dtype, quantization, rope scaling, tensor-parallel rank count, an epoch of the weights.
"""

from __future__ import annotations

import msgspec
import xxhash

from kvmarket.bounds import check_tenant
from kvmarket.errors import FingerprintError
from kvmarket.fact_texts import described
from kvmarket.facts import encoded
from kvmarket.registry.protocol.status import Fact


class Fingerprint(msgspec.Struct, frozen=True, eq=False):
    """A 128-bit hash of facts, as 32 hexadecimal digits; equal facts give equal fingerprints in every process.

    `facts` describe what was hashed, for `kvmarket top --why`. They do not count: fingerprints of equal digits are
    equal.
    """

    hex: str
    facts: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        """Refuse anything but 32 hexadecimal digits."""
        if len(self.hex) != 32 or any(c not in "0123456789abcdef" for c in self.hex):
            raise FingerprintError(f"{self.hex!r} is not 32 hexadecimal digits; make it with Fingerprint.of(...)")

    def __eq__(self, other: object) -> bool:
        """Whether the digits are equal."""
        return self.hex == other.hex if isinstance(other, Fingerprint) else NotImplemented

    def __hash__(self) -> int:
        """Hash of the digits."""
        return hash(self.hex)

    def __repr__(self) -> str:
        """The digits alone."""
        return f"Fingerprint(hex={self.hex!r})"

    @classmethod
    def of(cls, **facts: object) -> Fingerprint:
        """Hash `facts`: their order does not matter, every one counts, and so does the type of its value.

        Values may be None, bool, int, float, str, bytes, enums, paths, classes, torch's and numpy's dtypes, torch
        devices, numpy scalars; arrays and tensors, of which every element counts; dataclasses, and nested lists,
        tuples, sets and mappings of all these. Raises FingerprintError when there are no facts, for NaN, and for
        anything else: a text of it might be equal for different values, or differ in every process. Costs some
        20 us a fact, and two passes over arrays.
        """
        if not facts:
            raise FingerprintError("no facts given; name at least the model: Fingerprint.of(model=..., dtype=...)")
        return cls(xxhash.xxh3_128_hexdigest(encoded(facts)), described(facts))


def check_identity(fingerprint: Fingerprint, tenant: str) -> None:
    """Raise FingerprintError or MisuseError unless these can name who shares with whom."""
    if not isinstance(fingerprint, Fingerprint):
        raise FingerprintError(
            f"fingerprint is a {type(fingerprint).__name__}; make it with Fingerprint.of(model=..., dtype=...)"
        )
    check_tenant(tenant)
