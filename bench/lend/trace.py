"""Recorded requests, of which only the shared prefixes are known: Mooncake's traces (FAST 2025).

Each line is a JSON object with `timestamp` (ms), `input_length` and `output_length` (tokens) and `hash_ids`, one for
each block of 512 tokens of the prompt: equal ids are equal blocks behind equal prefixes.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

BLOCK_TOKENS = 512


class Request(NamedTuple):
    """One request: when it came, in seconds, and the blocks of its prompt from the first one on."""

    at: float
    blocks: Sequence[int]


def read(path: Path) -> list[Request]:
    """All requests of a trace, in their order.

    Raises ValueError for a file that is no such trace, or for a prompt that holds a block twice.
    """
    requests = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            found = json.loads(line)
            request = Request(found["timestamp"] / 1000, tuple(map(int, found["hash_ids"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no request of a Mooncake trace: {error!r}") from error
        if len(set(request.blocks)) < len(request.blocks):
            raise ValueError(f"line {number} of {path}: a prompt that holds a block twice")
        requests.append(request)
    return requests


def leading(blocks: Sequence[int], kept: Container[int]) -> int:
    """Number of leading blocks of a prompt that are among the `kept` ones."""
    return next((i for i, block in enumerate(blocks) if block not in kept), len(blocks))


def endless(requests: Sequence[Request]) -> int:
    """Number of leading blocks that a cache without bounds would find, over all requests."""
    seen: set[int] = set()
    found = 0
    for request in requests:
        found += leading(request.blocks, seen)
        seen.update(request.blocks)
    return found
