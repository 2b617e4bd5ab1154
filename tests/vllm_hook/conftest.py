"""The node whose engines the tests of this folder share, with each version of vLLM that there is."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarket.registry.address import Address
from tests.chaos import leaks
from tests.vllm_hook.node import GPUS, Node


@pytest.fixture(scope="package", params=["here", "0.26"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """Four engines, in use by all tests of the package; nothing of them may be left in the end."""
    python = sys.executable
    if request.param == "0.26":
        python = os.environ.get("KVMARKET_VLLM026_PYTHON", "")
        if not python:
            pytest.skip("vLLM 0.26: KVMARKET_VLLM026_PYTHON names no interpreter that has it")
    elif importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as folder:
        adapters = request.param == "here" and not GPUS  # 0.26 reloads no weights where there may be adapters
        found = Node(Path(folder), python, adapters)
        try:
            for engine in [found.start(name) for name in ("a", "b", "c", "plain")]:
                engine.wait()
            if request.param == "0.26":
                assert found.a.vllm.startswith("0.26")
            yield found
        finally:
            found.close()
        end = time.monotonic() + 10
        while (left := leaks.left_by_market(Address(found.address))) and time.monotonic() < end:
            time.sleep(0.1)  # the service outlives its last engine a little
        assert left + leaks.left_in_shm(found.pids) == []
