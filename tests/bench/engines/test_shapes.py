"""What the benchmarks' models take."""

from __future__ import annotations

import pytest

from bench.engines.shapes import LLAMA_8B, MLA, TINY, token_bytes


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [(LLAMA_8B, 32 * 2 * 8 * 128 * 2), (TINY, 2 * 2 * 32 * 4), (MLA, 16 * (512 + 64) * 2)],
)
def test_bytes_of_a_token(shape, nbytes):
    assert token_bytes(shape) == nbytes
