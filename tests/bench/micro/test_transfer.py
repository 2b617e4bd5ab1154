"""The benchmark of transfers from end to end, small and on a CPU: a change of the core cannot break it unseen."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# The copy engine is the one part that no CPU has.
RUN = """
import ctypes
from kvmarket.ways.gpu import copy_engine

def copy_ranges(to, of, sizes, stream):
    for destination, source, size in zip(to.tolist(), of.tolist(), sizes.tolist(), strict=True):
        ctypes.memmove(destination, source, size)

copy_engine.copy_ranges = copy_ranges
from bench.micro.transfer import main

if __name__ == "__main__":
    main(["--repeats", "5", "--seconds", "0.1"])
"""


@pytest.mark.slow
@pytest.mark.long
def test_all_parts_run_without_a_gpu(tmp_path: Path):
    script = tmp_path / "small.py"  # a file: its processes are spawned
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    rows = [ast.literal_eval(line) for line in run.stdout.splitlines() if line.startswith("{")]
    names = {row["name"] for row in rows}
    assert names >= {
        "pack_checksum", "packed", "packed_staged", "contiguous_copy", "in_place", "pull_132", "checksum_off_staged",
        "one_block", "cpu_8_contiguous", "both_ways_in_place", "baseline_memcpy_batch", "co_runner_owner_prefill",
    }  # fmt: skip
    assert all(row["p50"] > 0 and row["bytes"] > 0 for row in rows)
