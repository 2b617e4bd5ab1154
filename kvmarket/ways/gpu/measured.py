"""The built-in rates of the ways of a GPU, measured between two H200 over NVLink.

Single copies: call_p50 of bench/results/h200x2-transfer.json. Two copies under way (busy): the lower of the rates in
that file and in h200x2-slow-host-transfer.json, from a machine whose CPUs are half as fast.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvmarket.ways.choice import Rate


def h200(way: str, fragment: int, reached: Mapping[int, int], *, busy: bool = False) -> tuple[Rate, ...]:
    """The rates of a way; ``reached`` maps the size of a copy in MiB to GB/s."""
    return tuple(Rate(way, mib << 20, fragment, rate * 1e9, busy) for mib, rate in reached.items())
