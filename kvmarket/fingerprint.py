"""The fingerprint of an engine: a 128-bit hash of everything that must agree before KV may be reused.

Two engines share blocks only if their fingerprints are equal. The caller must pass every fact that can change a byte of
the KV cache: model and revision, dtype, quantization, rope scaling, number of tensor-parallel ranks, a number that
changes with the weights. A vLLM engine's facts are collected in ``vllm_hook/engine/facts.py`` and
``vllm_hook/identity``. A space also separates engines by kind of memory and by ranks (`OwnPools.joining`).
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

        Values may be None, bool, int, float, complex, str, bytes, bytearray, enums, paths, classes; dtypes of torch and
        numpy, torch's devices, layouts and memory formats, numpy scalars; arrays and dense tensors, with all their
        elements; dataclasses, msgspec Structs, and nested lists, tuples, sets and mappings of all these.

        Raises FingerprintError when there are no facts; for a number that is NaN (elements of arrays and tensors may
        be); for local classes, whose names may be equal; for arrays of Python objects; and for other types: their text
        might be equal for different values, or differ between processes. Costs about 20 us a fact, and two passes over
        arrays.
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
