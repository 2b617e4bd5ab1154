"""A node with four vLLM engines, started once for all tests of this folder that ask for them."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.engines.process import GPUS, EngineProcess
from kvmarket.cli.top import ask_status
from kvmarket.registry.protocol.address import Address
from tests.vllm_hook.engines.model import BLOCK, VOCAB, llm_options, save_tiny_adapter, save_tiny_llama

CONNECTORS = Path(__file__).resolve().parent  # engines import their modules from here
VISIBLE = 1.0  # seconds after which an offer is surely visible, also on a busy machine


def whole(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


@dataclass
class Node:
    """Engines by name: `a`; `b`, with the unchanged connector; `c`, with a gate; `plain`, without a connector.

    On a machine with GPUs they run there, with CUDA graphs; with two GPUs, `b` is not on that of `a`. Steps of `b`
    overlap. `adapters`: whether the engines accept LoRA adapters.
    """

    folder: Path
    python: str
    adapters: bool
    engines: dict[str, EngineProcess] = field(default_factory=dict)
    pids: list[int] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self.model = save_tiny_llama(self.folder / "model")
        self.other_model = save_tiny_llama(self.folder / "other", seed=1)
        self.adapter = save_tiny_adapter(self.folder / "adapter") if self.adapters else None
        self.address, self.gate = str(self.folder / "s"), self.folder / "gate"

    def __getattr__(self, name: str) -> EngineProcess:
        try:
            return self.__dict__["engines"][name]
        except KeyError:
            raise AttributeError(name) from None

    def start(self, name: str) -> EngineProcess:
        """Start one of the engines, also one that was killed, without waiting: call `wait` on it."""
        if name in self.engines:
            self.engines[name].close()
        beside = {"kv_connector": "WatchingConnector", "kv_connector_module_path": "connectors"}
        overlap = not GPUS and self.python == sys.executable  # vLLM 0.26 waits for each step in any case
        gpu, seed, more = {
            "a": (0, "1", {"module": "connectors", "connector": "SeenConnector"}),
            "b": (1, "2", {"module": "", "stats": True, "overlap": overlap}),
            "c": (0, "3", {"module": "connectors", "connector": "GatedConnector", "beside": beside}),
            "plain": (1, "1", {"address": None}),
        }[name]
        llm = {**llm_options(), "enable_lora": self.adapters, "async_scheduling": name != "a"}
        llm["disable_log_stats"] = not more.pop("stats", False)
        options = {"model": self.model, "address": self.address, "llm": llm, "path": [str(CONNECTORS)]}
        options["extra"] = {"wait_tokens": 8 * BLOCK}
        env = {"KVMARKET_TEST_GATE": str(self.gate), "PYTHONHASHSEED": seed}
        if GPUS:
            env["CUDA_VISIBLE_DEVICES"] = str(gpu % GPUS)
        log = self.folder / f"{name}-{len(self.pids)}.log"
        self.engines[name] = EngineProcess(log, {**options, **more}, self.python, env)
        self.pids.append(self.engines[name].pid)
        return self.engines[name]

    def close(self) -> None:
        """End all engines."""
        for engine in self.engines.values():
            engine.close()

    def waiting(self) -> Path:
        """The file that exists while a load waits at the gate."""
        return self.gate.with_suffix(".waiting")

    def service(self) -> int:
        """The process number of the market's service."""
        return ask_status(Address(self.address)).service.pid

    def prompt(self, tokens: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(tokens)]

    def offered(self, engine: EngineProcess, *prompts: list[int], **more: Any) -> dict[str, Any]:
        """Have the engine prefill the prompts, and wait until their blocks are offered."""
        answer = engine.generate(list(prompts), **more)
        time.sleep(VISIBLE)
        return answer

    def churn(self, engine: EngineProcess) -> None:
        """Overwrite every page of the engine, and wait until the others know."""
        for _ in range(3):
            engine.generate([self.prompt(15 * BLOCK) for _ in range(4)])
        time.sleep(VISIBLE)

    def agrees(
        self, engine: EngineProcess, prompts: list[list[int]], cached: list[int] | None = None, **more: Any
    ) -> list[int]:
        """Assert that 32 greedy tokens equal the plain engine's, and which were cached; returns the cached tokens."""
        answer = engine.generate(prompts, 32, **more)
        expected = self.plain.generate(prompts, 32, adapter=more.get("adapter"))["tokens"]
        assert answer["tokens"] == expected, engine.ask("counters")
        assert cached in (None, answer["cached"]), engine.ask("counters")
        return list(answer["cached"])
