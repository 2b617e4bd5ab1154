"""Checks of the caller's values against the limits of the protocol.

They are made where a value enters the library: an error of the service could not tell the caller what to do.
"""

from __future__ import annotations

import xxhash

from kvmarket.errors import LayoutError, MisuseError, TokenError
from kvmarket.layout.layout import Layout
from kvmarket.registry.protocol.messages import MAX_BLOCK_SIZE, MAX_SLOTS, MAX_TOKENS
from kvmarket.registry.protocol.status import MAX_NAME

_SHOWN = 1000  # characters that are kept of a text that is too long to be sent whole


def check_tenant(tenant: str) -> None:
    """Raise MisuseError unless `tenant` is a string that can be sent."""
    if not isinstance(tenant, str):
        raise MisuseError(f"tenant is a {type(tenant).__name__}; give a string")
    if len(tenant) > MAX_NAME:
        raise MisuseError(f"tenant has {len(tenant)} characters, at most {MAX_NAME} can be sent; give a hash of it")
    try:
        tenant.encode()
    except UnicodeEncodeError as error:
        raise MisuseError(f"tenant is no text that can be sent: {error}; give a hash of it, in hexadecimal") from error


def check_tokens(count: int) -> None:
    """Raise TokenError where a prefix has more tokens than one message can hold."""
    if count > MAX_TOKENS:
        raise TokenError(f"{count} tokens, of which at most {MAX_TOKENS} can be sent at once; give a shorter prefix")


def check_count(name: str, value: int | None, least: int) -> None:
    """Raise MisuseError unless `value` is a whole number from `least` on, or None."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)  # numpy's integers are whole numbers too
    if value is not None and not (whole and value >= least):
        raise MisuseError(f"{name}={value!r}; give a whole number from {least} on")


def check_size(layout: Layout) -> None:
    """Raise LayoutError where a cache has more slots, or more tokens per block, than messages can name."""
    if layout.slots > MAX_SLOTS:
        raise LayoutError(
            f"{layout.slots} slots, of which at most {MAX_SLOTS} can be named; make larger blocks, or several caches"
        )
    if layout.block_size > MAX_BLOCK_SIZE:
        raise LayoutError(f"blocks of {layout.block_size} tokens; make blocks of at most {MAX_BLOCK_SIZE}")


def shortened(text: str) -> str:
    """`text` if it can be sent whole; else its beginning and a hash of all of it. Equal exactly for equal texts."""
    if len(text) <= MAX_NAME:
        return text
    return f"{text[:_SHOWN]} ... {len(text)} characters, {xxhash.xxh3_128_hexdigest(text.encode())}"
