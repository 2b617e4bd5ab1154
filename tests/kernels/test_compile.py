"""The kernels compile for Hopper without a GPU, and move 16 bytes per access where the alignment allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kvmarket.kernels.pack import WARPS as PACK_WARPS, pack_kernel
from kvmarket.kernels.pull import WARPS as PULL_WARPS, pull_kernel
from kvmarket.kernels.scatter import WARPS as SCATTER_WARPS, scatter_kernel
from kvmarket.kernels.tile import REGISTERS, constants_of, tile_of

kernels = {"pack": (pack_kernel, PACK_WARPS), "scatter": (scatter_kernel, SCATTER_WARPS)}
kernels["pull"] = (pull_kernel, PULL_WARPS)
found = []
for name, length, align, size, wide, summed in json.loads(sys.argv[1]):
    kernel, warps = kernels[name]
    constants = constants_of(tile_of(length, align, size), wide=wide, summed=summed)
    signature = dict.fromkeys(["table", "source_slots", "destination_slots", "sums"], "*i64")
    signature |= {"fragments": "i32", "chunks": "i32", "words": "i32", "units": "i64" if wide else "i32"}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "maxnreg": REGISTERS})
    found.append(sorted(set(re.findall(r"(?:ld|st)\\.global[.\\w]*", made.asm["ptx"]))))
print(json.dumps(found))
"""
NO_SUMS, PER_BLOCK, PER_UNIT = 0, 1, 2  # as in kvmarket.kernels.tile, which imports Triton
CASES = [  # kernel, fragment bytes, alignment, tile bytes, 64-bit counts, checksums
    ("pull", 65536, 16, 65536, False, NO_SUMS),
    ("pull", 65536, 16, 65536, False, PER_BLOCK),
    ("pull", 65536, 16, 65536, False, PER_UNIT),
    ("pack", 512, 16, 65536, False, PER_BLOCK),
    ("scatter", 48, 16, 32768, True, PER_BLOCK),
    ("pull", 520, 8, 8192, False, NO_SUMS),
    ("scatter", 6, 2, 8192, False, NO_SUMS),
]


@pytest.fixture(scope="module")
def accesses(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[object, ...], list[str]]:
    """Kinds of global loads and stores in the PTX of each case."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "TRITON_DEFAULT_FP_FUSION": "1"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, json.dumps(CASES)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=300)
    if "no module named 'triton.backends.nvidia'" in done.stderr.lower():
        pytest.skip("this build of Triton has no NVIDIA compiler")
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def wide(kinds: list[str]) -> set[str]:
    """Loads and stores of 128 bits among them."""
    return {kind[:2] for kind in kinds if kind.endswith(("v2.b64", "v4.b32", "b128"))}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accesses_are_as_wide_as_the_alignment(case: tuple[object, ...], accesses: dict[tuple[object, ...], list[str]]):
    expected = {"ld", "st"} if case[2] == 16 else set()
    assert wide(accesses[case]) == expected, accesses[case]
