"""Engines in containers of their own with their caches on one GPU: CUDA IPC between namespaces."""

from __future__ import annotations

import pytest

from tests.container import Container, apart
from tests.model_engine import ModelEngine, prompt, until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(apart() is None, reason="this user may make no namespaces"),
]


def test_blocks_go_between_containers_on_a_gpu_until_one_is_killed(own_address):
    first, second = (Container(own_address, device="cuda") for _ in range(2))
    engine = ModelEngine(own_address, device="cuda")
    try:
        first.ask("publish", tokens := prompt(16, 1), [0, 1, 2, 3])
        until(lambda: second.ask("blocks", tokens) == 4)
        assert second.ask("take", tokens, [0, 1, 2, 3]) == 4, second.ask("counters")
        until(lambda: engine.market.match(tokens).blocks == 4)
        assert engine.take(tokens, [0, 1, 2, 3]) == 4
        engine.publish(others := prompt(16, 2), [4, 5, 6, 7])
        until(lambda: second.ask("blocks", others) == 4)
        assert second.ask("take", others, [4, 5, 6, 7]) == 4, second.ask("counters")
        assert second.ask("mapped") == 2
        first.kill()
        until(lambda: second.ask("blocks", tokens) == 0 and second.ask("mapped") == 1, seconds=5)
    finally:
        first.close()
        second.close()
        engine.market.close()
