"""Real engines share where their weights are the same, wherever these lie, and never where other bytes lie there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.engines.process import EngineProcess
from tests.vllm_hook.engines.model import llm_options
from tests.vllm_hook.engines.node import Node, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WEIGHTS = "model.safetensors"


def on(node: Node, model: str, log: str) -> EngineProcess:
    """An engine like those of the node, with the model that lies there; named otherwise, and with other limits."""
    llm = {**llm_options(), "enable_lora": node.adapters, "max_num_seqs": 4, "served_model_name": log}
    options = {"model": model, "address": node.address, "llm": llm, "module": ""}
    engine = EngineProcess(node.folder / f"{log}.log", options, node.python, {"PYTHONHASHSEED": "9"})
    node.pids.append(engine.pid)
    return engine


@pytest.mark.long
def test_engines_share_by_what_their_weights_are(node: Node, tmp_path: Path):
    copy, link = tmp_path / "copy", tmp_path / "current"
    shutil.copytree(node.model, copy)
    link.symlink_to("copy")
    prompt = node.prompt(300)
    node.offered(node.a, prompt)
    with on(node, f"{link}/", "copy") as engine:
        engine.wait()
        node.agrees(engine, [[*prompt, 1]], [whole(300)])
        node.offered(engine, back := node.prompt(300))
        node.agrees(node.b, [[*back, 1]], [whole(300)])
    file, other = copy / WEIGHTS, Path(node.other_model) / WEIGHTS
    before = file.stat()
    file.write_bytes(other.read_bytes())  # as rsync --inplace does
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_ino, file.stat().st_size) == (before.st_ino, before.st_size)
    with on(node, f"{link}/", "replaced") as engine:
        engine.wait()
        answer = engine.generate([[*prompt, 1]], 8)
        assert answer["cached"] == [0] and answer["tokens"] != node.plain.generate([[*prompt, 1]], 8)["tokens"]
        node.offered(engine, mine := node.prompt(300))
        node.agrees(node.b, [[*mine, 1]], [0])
