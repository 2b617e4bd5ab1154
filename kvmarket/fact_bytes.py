"""Facts as bytes: equal values give the same bytes in every process, different values different bytes.

Each value is written as its kind and its parts, each part after its length, so that different structures never give
the same bytes. A value without an exact encoding is refused; its text is never used instead.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np
import xxhash

from kvmarket.errors import FingerprintError

_TORCH_NAMES = ("dtype", "device", "layout", "memory_format")  # classes of torch whose str() names a value exactly


def encoded(facts: Mapping[str, object]) -> bytes:
    """`facts` as bytes. Raises FingerprintError for values without an exact encoding."""
    try:
        return _encoded(facts)
    except RecursionError as error:
        raise FingerprintError("a fact holds itself, or is nested too deep; give its content flat") from error


def _encoded(value: Any) -> bytes:
    for kinds, encode in _ENCODERS:
        if isinstance(value, kinds):
            return encode(value)
    torch = sys.modules.get("torch")
    if torch is not None:
        if isinstance(value, tuple(getattr(torch, name) for name in _TORCH_NAMES)):
            return _node("torch", type(value).__name__.encode(), str(value).encode())
        if isinstance(value, torch.Tensor):
            return _tensor(value, torch)
        if isinstance(value, torch.nn.Module):
            raise FingerprintError(
                f"a fact is a {_name(type(value))}, whose text does not hold its weights; name the model and its "
                "revision by strings, or give module.state_dict()"
            )
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif isinstance(value, msgspec.Struct):
        names = list(value.__struct_fields__)
    else:
        raise FingerprintError(
            f"a fact is a {_name(type(value))}, of which no text is known to tell every value apart; give its name, or "
            "its fields in a mapping"
        )
    return _node("fields", _class(type(value)), _mapping({name: getattr(value, name) for name in names}))


def _node(kind: str, *parts: bytes) -> bytes:
    return b"".join([kind.encode(), b"(", *(b"%d:%b" % (len(part), part) for part in parts), b")"])


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class(kind: type) -> bytes:
    """The full name of a class. Raises FingerprintError for a local class: another local class may have its name."""
    if "<locals>" in kind.__qualname__:
        raise FingerprintError(f"a fact is, or is made of, the local class {_name(kind)}; give a name of your own")
    return _name(kind).encode()


def _typed(value: Any, plain: type, content: bytes) -> bytes:
    """Encode the `content` of a value of type `plain`. For a value of a derived class, encode the class as well."""
    if type(value) is plain:
        return _node(plain.__name__, content)
    return _node("derived", _class(type(value)), _node(plain.__name__, content))


def _text(value: str) -> bytes:
    return _typed(value, str, str.encode(value, "utf-8", "surrogatepass"))


def _float(value: float) -> bytes:
    if math.isnan(value):
        raise FingerprintError("a fact is NaN, which equals nothing; leave it out or name it by a string")
    return _typed(value, float, float.hex(value).encode())


def _complex(value: complex) -> bytes:
    return _typed(value, complex, _float(float(value.real)) + _float(float(value.imag)))


def _enum(value: enum.Enum) -> bytes:
    return _node("enum", _class(type(value)), str(value.name).encode("utf-8", "surrogatepass"), _encoded(value.value))


def _mapping(value: Mapping[Any, Any]) -> bytes:
    return _node("mapping", *sorted(_node("item", _encoded(key), _encoded(each)) for key, each in value.items()))


def _sequence(kind: str) -> Callable[[Iterable[Any]], bytes]:
    return lambda value: _node(kind, *map(_encoded, value))


def _set(value: Iterable[Any]) -> bytes:
    return _node("set", *sorted(map(_encoded, value)))


def _dtype(dtype: np.dtype[Any]) -> bytes:
    if dtype.hasobject:
        raise FingerprintError(f"a fact is an array of {dtype}; give plain values in a list")
    fields = repr(dtype.descr) if dtype.names else ""
    return _node("dtype", dtype.str.encode(), dtype.name.encode(), fields.encode("utf-8", "surrogatepass"))


def _array(value: np.ndarray[Any, Any] | np.generic) -> bytes:
    """Encode a numpy array or scalar: dtype, shape, and a digest of all its bytes in C order."""
    if isinstance(value, np.generic) and value.dtype.kind in "fc" and bool(np.isnan(value)):
        raise FingerprintError("a fact is NaN, which equals nothing; leave it out or name it by a string")
    kind = "array" if isinstance(value, np.ndarray) else "scalar"
    return _node(kind, _dtype(value.dtype), repr(value.shape).encode(), _digest(np.asarray(value).tobytes()))


def _tensor(value: Any, torch: Any) -> bytes:
    """Encode a torch tensor on any device: dtype, shape, and a digest of all its elements."""
    try:
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        content = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise FingerprintError(
            f"a fact is a tensor whose elements cannot be read ({error}); give a dense tensor, or its name"
        ) from error
    return _node("tensor", str(value.dtype).encode(), repr(tuple(value.shape)).encode(), _digest(content))


def _digest(content: bytes) -> bytes:
    return b"%d:%b" % (len(content), xxhash.xxh3_128_digest(content))


# The first entry that fits is used: a bool is also an int, an enum may be a str, a numpy scalar may be a float.
_ENCODERS: tuple[tuple[Any, Callable[[Any], bytes]], ...] = (
    (type(None), lambda value: _node("None")),
    (enum.Enum, _enum),
    (bool, lambda value: _node("bool", b"%d" % value)),
    ((np.ndarray, np.generic), _array),
    (int, lambda value: _typed(value, int, b"%x" % value)),
    (float, _float),
    (complex, _complex),
    (str, _text),
    ((bytes, bytearray), lambda value: _node(type(value).__name__, bytes(value))),
    (np.dtype, _dtype),
    (PurePath, lambda value: _node("path", _class(type(value)), _text(str(value)))),
    (type, lambda value: _node("class", _class(value))),
    (Mapping, _mapping),
    (list, _sequence("list")),
    (tuple, _sequence("tuple")),
    ((set, frozenset), _set),
)
