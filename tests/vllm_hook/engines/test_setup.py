"""Engines that are set up so that they do not share: the log of each says within a minute what to change."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.engines.process import GPUS, EngineProcess
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.service.listener import Listener
from tests.model_engine import until
from tests.vllm_hook.engines.model import llm_options, save_tiny_llama

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def said(engine: EngineProcess) -> list[str]:
    """What the log of an engine says of being alone."""
    alone = "kvmarket shares with nobody yet: "
    return [line.partition(alone)[2] for line in engine.log.read_text(errors="replace").splitlines() if alone in line]


def test_what_keeps_idle_engines_apart_is_in_their_logs():
    """Other weights under the same name in the same market, and a market whose address somebody has mistyped."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp")))
        address = str(folder / "s")
        typo = Address(f"{address}-typo")
        stack.callback(Listener(typo).close)
        engines = []
        for seed, name in enumerate("ab"):
            options = {"model": save_tiny_llama(folder / name / "model", seed=seed), "address": address, "module": ""}
            options["llm"] = {**llm_options(), "enforce_eager": True}
            engines.append(stack.enter_context(EngineProcess(folder / f"{name}.log", options)))
        for engine in engines:
            engine.wait()
        start = time.monotonic()
        until(lambda: all(len(said(engine)) >= 2 for engine in engines), 60)
        print(f"both have said it {time.monotonic() - start:.1f} s after the later one was up")
        for engine, other in (engines, engines[::-1]):
            facts, market, *_ = said(engine)  # markets of this machine elsewhere come last
            assert facts.startswith(
                f"pid {other.pid} ({folder}/{'b' if engine is engines[0] else 'a'}/model) is in the"
            )
            weights = "but differs in weights ([(0, '" + ("" if GPUS else "files ")
            assert weights in facts and facts.count(" here, ") == 1
            assert facts.endswith(f"see `kvmarket top --why --address {address}`")
            assert market.startswith(f"this engine is in the market {address}, and another market lives at {typo}")
            assert market.endswith("; engines of different markets never share: give all of them one address")
