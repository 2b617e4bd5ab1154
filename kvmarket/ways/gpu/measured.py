"""The built-in rates of a GPU's ways: over NVLink, of two H200.

One copy at a time: by call_p50 of bench/results/h200x2-transfer.json. Two under way: the lower rate of that machine and
of h200x2-slow-host-transfer.json, whose CPUs are half as fast.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmarket.ways.choice import Rate


def h200(way: str, fragment: int, reached: Mapping[int, int], *, busy: bool = False) -> tuple[Rate, ...]:
    """The rates of a way that reached so many GB/s by the MiB of a copy."""
    return tuple(Rate(way, mib << 20, fragment, rate * 1e9, busy) for mib, rate in reached.items())
