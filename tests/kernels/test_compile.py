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
from kvmarket.kernels import shape
from kvmarket.kernels.pack import pack_kernel
from kvmarket.kernels.pull import pull_kernel
from kvmarket.kernels.scatter import scatter_kernel

kernels = {"pack": pack_kernel, "scatter": scatter_kernel, "pull": pull_kernel}
found = []
for name, length, align, program, wide, summed in json.loads(sys.argv[1]):
    kernel, program = kernels[name], getattr(shape, program)
    constants = shape.constants_of(shape.tile_of(length, align, program), wide=wide, summed=summed)
    signature = dict.fromkeys(["table", "source_slots", "destination_slots", "sums"], "*i64")
    signature |= {"fragments": "i32", "chunks": "i32", "words": "i32", "units": "i64" if wide else "i32"}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    options = {"num_warps": program.warps, "maxnreg": program.registers}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    found.append(sorted(set(re.findall(r"(?:ld|st)\\.global[.\\w]*", made.asm["ptx"]))))
print(json.dumps(found))
"""
NO_SUMS, PER_BLOCK, PER_UNIT = 0, 1, 2  # as in kvmarket.kernels.tile, which imports Triton
CASES = [  # kernel, fragment bytes, alignment, program of shape.py, 64-bit counts, checksums
    ("pull", 65536, 16, "LINK", False, NO_SUMS),
    ("pull", 4096, 16, "LINK", True, NO_SUMS),
    ("pull", 65536, 16, "SUMMING_LINK", False, PER_BLOCK),
    ("pull", 65536, 16, "SUMMING_LINK", False, PER_UNIT),
    ("pull", 2048, 16, "SMALL_LINK", False, NO_SUMS),
    ("pack", 65536, 16, "LOCAL", False, NO_SUMS),
    ("pack", 512, 16, "SMALL_LOCAL", False, PER_BLOCK),
    ("pull", 2048, 16, "SMALL_LINK", False, PER_BLOCK),
    ("scatter", 65536, 16, "LOCAL", False, PER_BLOCK),
    ("scatter", 48, 16, "SMALL_LOCAL", True, PER_BLOCK),
    ("pull", 520, 8, "SMALL_LINK", False, NO_SUMS),
    ("scatter", 6, 2, "SMALL_LOCAL", False, NO_SUMS),
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
