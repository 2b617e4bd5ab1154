"""The fingerprint of an engine: a 128-bit hash of everything that must agree before KV may be reused.

Two engines share blocks only if their fingerprints are equal. Every fact that can change a byte of the KV cache must be
hashed: model and revision, dtype, quantization, rope scaling, tensor-parallel rank count, an epoch of the weights.
A vLLM engine's facts are collected in ``vllm_hook/engine/facts.py`` and ``vllm_hook/identity``; the space in which it
shares also has its kind of memory and ranks (``market/own_pool.py``).
"""

from __future__ import annotations

import msgspec
import xxhash

from kvmarket.bounds import check_tenant
from kvmarket.errors import FingerprintError
from kvmarket.fact_bytes import encoded
from kvmarket.fact_texts import described
from kvmarket.registry.protocol.status import Fact


class Fingerprint(msgspec.Struct, frozen=True, eq=False):
    """A 128-bit hash of facts, as 32 hexadecimal digits; equal facts give equal fingerprints in every process.

    `facts` describe what was hashed, for `kvmarket top --why`. Comparison ignores them: fingerprints with equal digits
    are equal.
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
        """Hash `facts`: names, values and the types of the values. Their order does not matter.

        Values may be None, bool, int, float, str, bytes, enums, paths, classes, torch's and numpy's dtypes, torch
        devices, numpy scalars; arrays and tensors, with all their elements; dataclasses, msgspec Structs, and nested
        lists, tuples, sets and mappings of all these. Raises FingerprintError when there are no facts, for NaN, and
        for other types: their text might be equal for different values, or differ between processes. Costs about
        20 us a fact, and two passes over arrays.
        """
        if not facts:
            raise FingerprintError("no facts given; name at least the model: Fingerprint.of(model=..., dtype=...)")
        return cls(xxhash.xxh3_128_hexdigest(encoded(facts)), described(facts))


def check_identity(fingerprint: Fingerprint, tenant: str) -> None:
    """Raise FingerprintError unless `fingerprint` is a Fingerprint, MisuseError unless `tenant` can be sent."""
    if not isinstance(fingerprint, Fingerprint):
        raise FingerprintError(
            f"fingerprint is a {type(fingerprint).__name__}; make it with Fingerprint.of(model=..., dtype=...)"
        )
    check_tenant(tenant)
