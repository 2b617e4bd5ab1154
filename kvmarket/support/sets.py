"""Sets of integers, as sorted arrays.

NumPy's own functions (unique, union1d, intersect1d) import numpy.ma on their first call. That takes 60 ms, which an
engine's step would have to wait. The functions here import nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvmarket.support.flags import leading

Values = TypeVar("Values", bound=NDArray[Any])


def distinct(values: Values) -> Values:
    """The values in ascending order, each once; the same array if it is so already. Costs a few us."""
    if leading(values[1:] > values[:-1]) >= len(values) - 1:  # the usual case
        return values
    ordered: Values = np.sort(values)  # type: ignore[assignment]
    new = ordered[1:] != ordered[:-1]
    return ordered if leading(new) == len(new) else ordered[np.concatenate([[True], new])]


def common(some: Values, others: Values) -> Values:
    """The values that both arrays hold, in ascending order, each once. Costs about 10 us."""
    ordered = np.sort(np.concatenate((distinct(some), distinct(others))))
    found: Values = ordered[:-1][ordered[1:] == ordered[:-1]]
    return found
