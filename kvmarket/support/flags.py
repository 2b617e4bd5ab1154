"""Arrays of booleans."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Flags: TypeAlias = NDArray[np.bool_]


def total(flags: Flags) -> int:
    """How many flags are true. Costs 0.2 us, half of what numpy takes for few."""
    return flags.tobytes().count(1)


def leading(flags: Flags) -> int:
    """How many flags are true before the first that is not. Costs 0.3 us, a third of what `all` does."""
    first = flags.tobytes().find(b"\0")
    return len(flags) if first < 0 else first
