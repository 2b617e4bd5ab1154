"""Every benchmark of the hook runs from end to end, small, on the CPU: three engines serve all of them.

What they measure there means nothing; that each writes rows, finds hits where it must and ends well does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import hook, report
from bench.engines.process import GPUS, EngineProcess
from bench.engines.shapes import Engines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(GPUS > 0, reason="vLLM's build for GPUs runs no engine on the CPU"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
SIZES = {"longest": 2048, "seqs": 16, "llm": {"num_gpu_blocks_override": 128}}
SMALL = {  # name: options, and the suite that it writes
    "weights_name": ("--repeats 1", "weights"),
    "ttft": ("--prompts 1 --again 1 --lengths 300", "ttft"),
    "waits": ("--lengths 128 --windows 2 --repeats 1", "waits"),
    "outputs": ("--conversations 2 --turns 2 --together 2", "outputs"),
    "serving": ("--modes 'hook on' --turns 8 --system 128 --documents 2 --document 256 --rates 50", "serving"),
    "throughput": ("--pairs 1 --prefix 256 --prefixes 2", "throughput"),
    "tiers": ("--requests 4", "tiers"),
    "ttft_trace": ("--repeats 1 --lengths 300", "ttft-trace"),  # last: it leaves its spans in the engine
}


class Lent(EngineProcess):
    """An engine that stays up for the next benchmark."""

    def wait(self, seconds: float = 1000) -> EngineProcess:
        return self if self.vllm else super().wait(seconds)

    def close(self) -> None:
        self.ask("reset")

    def hang_up(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        super().close()


class Pool:
    """Two engines of one market, and one without a connector; whoever starts an engine gets the one that fits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engines = Engines(folder, [])
        with monkeypatch.context() as patch:
            patch.setattr("bench.engines.shapes.EngineProcess", Lent)
            self.address = engines.address
            market = {"address": engines.address, "extra": {"wait_tokens": 1}}
            self.hooks = [engines.start(f"hook-{at}", at, share=1, **market, **SIZES) for at in (0, 1)]
            self.plain = engines.start("plain", 0, share=1, **SIZES)

    def start(self, engines: Engines, name: str, gpu: int = 0, *, longest: int, **options: Any) -> EngineProcess:
        """In the place of `Engines.start`."""
        engines.address = self.address
        assert longest <= SIZES["longest"], "too small for this one"
        return self.hooks[gpu] if "address" in options else self.plain

    def end(self) -> None:
        engines = [*self.hooks, self.plain]
        for engine in engines:
            engine.hang_up()
        for engine in engines:
            engine.end()


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        made = Pool(Path(folder), patch)
        yield made
        made.end()


@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name: str, pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    options, suite = SMALL[name]
    monkeypatch.setattr(Engines, "start", lambda *args, **options: pool.start(*args, **options))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # the benchmarks' own processes have none either
    monkeypatch.setattr(sys, "argv", [name, "--cpu", "--write", "small", *shlex.split(options)])
    try:
        importlib.import_module(f"bench.hook.{name}").main()
    except SystemExit as end:
        assert not end.code, f"{name} ends with {end.code}"
    rows = json.loads((tmp_path / f"small-{suite}.json").read_text())["rows"]
    assert all(row["p50"] >= 0 for row in rows) and any(row["p50"] > 0 for row in rows)


def test_none_is_left_out():
    folder = Path(hook.__file__).parent
    made = {path.stem for path in folder.glob("*.py") if "def main()" in path.read_text()}
    assert made == {*SMALL, "ttft_http"}  # this one in test_http.py
