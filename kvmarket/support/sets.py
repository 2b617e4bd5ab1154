"""Sets of integers, as sorted arrays.

NumPy's own functions for it (unique, union1d, intersect1d) import numpy.ma when the first of them is called: 60 ms,
within whoever's step that happens to be. These import nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmarket.support.flags import leading

Values = TypeVar("Values", bound=NDArray[Any])


def distinct(values: Values) -> Values:
    """The values, each once, in order; the array itself where it is so already. Costs some us."""
    if leading(values[1:] > values[:-1]) >= len(values) - 1:  # mostly so
        return values
    ordered: Values = np.sort(values)  # type: ignore[assignment]
    new = ordered[1:] != ordered[:-1]
    return ordered if leading(new) == len(new) else ordered[np.concatenate([[True], new])]


def common(some: Values, others: Values) -> Values:
    """The values that are in both, each once, in order. Costs some 10 us."""
    ordered = np.sort(np.concatenate((distinct(some), distinct(others))))
    found: Values = ordered[:-1][ordered[1:] == ordered[:-1]]
    return found
