"""Two servers and a client, as examples/vllm_serve.py starts them: what /metrics says after an import."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_metrics_page_of_a_server_that_imported():
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(ROOT / "examples" / "vllm_serve.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1100)
    assert run.returncode == 0, run.stdout + run.stderr
    said = dict(re.findall(r"(kvmarket_\w+) ([\d,]+)$", run.stdout, re.MULTILINE))
    page = {name: int(value.replace(",", "")) for name, value in said.items()}
    assert page["kvmarket_imported_tokens_total"] == page["kvmarket_matched_tokens_total"] > 0
    assert page["kvmarket_fetched_bytes_total"] > page["kvmarket_imported_tokens_total"]
    assert page["kvmarket_lost_blocks_total"] == 0
    assert page["kvmarket_fetch_seconds_count"] > 0 and page["kvmarket_offered_blocks_total"] > 0
