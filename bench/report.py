"""Results of benchmarks: percentiles, and one JSON file per machine and suite under ``bench/results/``."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pynvml

from kvmarket.cli.doctor.nvml import driver_version, library

RESULTS = Path(__file__).resolve().parent / "results"


def percentiles(samples: Iterable[float]) -> dict[str, float]:
    """p10, p50 and p90 of `samples`, in their unit."""
    low, middle, high = np.percentile(list(samples), [10, 50, 90])
    return {"p10": round(float(low), 3), "p50": round(float(middle), 3), "p90": round(float(high), 3)}


def write(machine: str, suite: str, rows: list[dict[str, Any]], packages: Iterable[str] = (), **more: Any) -> Path:
    """Write ``bench/results/<machine>-<suite>.json``.

    Returns the file. `packages` are named with their versions if installed. `more` are further facts of the run, such
    as repeats or the driver; a `commit` among them replaces that of the checkout.
    """
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    result = {"machine": machine, "versions": versions, "commit": commit(), **more, "rows": rows}
    path = RESULTS / f"{machine}-{suite}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def facts(gpus: Sequence[int]) -> dict[str, str]:
    """The model of the GPUs that were used (of the first; all must be alike) and their driver, for a result file."""
    if not gpus:
        return {"gpu": "CPU"}
    with library():
        gpu = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(gpus[0]))
        return {"gpu": str(gpu), "driver": driver_version()}


def loop_ms(times: int = 100) -> float:
    """Median milliseconds of a Python loop with 20,000 empty turns: how fast this CPU is right now."""
    spent = []
    for _ in range(times):
        begin = perf_counter()
        for _ in range(20_000):
            pass
        spent.append(1e3 * (perf_counter() - begin))
    return round(median(spent), 3)


def commit() -> str:
    """The checkout's commit, with a "+" if files outside bench/results/ differ from it; empty outside a checkout."""
    head, changes = (
        subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ":/", ":!/bench/results"])
    )
    return head.stdout.strip() + ("+" if changes.stdout else "") if head.returncode == 0 else ""
