"""The node whose engines the tests of this folder share, once for each version of vLLM to test."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.engines.process import GPUS
from kvmarket.registry.protocol.address import Address
from tests.chaos import leaks
from tests.vllm_hook.engines.node import Node
from tests.vllm_hook.engines.versions import INSTALLED, interpreters


@pytest.fixture(scope="package", params=interpreters())
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node with four engines for all tests of the package; they must leave no files or processes behind."""
    python = interpreters()[request.param]
    if request.param == INSTALLED and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as folder:
        adapters = request.param == INSTALLED and not GPUS  # vLLM 0.26 cannot reload weights with adapters enabled
        found = Node(Path(folder), python, adapters)
        try:
            for engine in [found.start(name) for name in ("a", "b", "c", "plain")]:
                engine.wait()
            assert request.param in (INSTALLED, found.a.vllm)
            yield found
        finally:
            found.close()
        end = time.monotonic() + 10
        while (left := leaks.left_by_market(Address(found.address))) and time.monotonic() < end:
            time.sleep(0.1)  # the service outlives its last engine a little
        assert left + leaks.left_in_shm(found.pids) == []
