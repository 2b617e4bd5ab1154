"""A kernel for tests of what compiling one changes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fill(x, n, B: tl.constexpr):
    """Number the first `n` of up to `B` ints."""
    at = tl.arange(0, B)
    tl.store(x + at, at, mask=at < n)
