"""Two API servers as an operator starts them, and a client: what one has computed the other imports."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engines.engine import CPU
from bench.engines.process import child_environment
from bench.engines.server import free_port
from kvmarket.cli.top import ask_status
from kvmarket.cli.top.screen import FETCHED, HITS, IMPORTED
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.status import Label, MemberStatus
from tests.model_engine import until
from tests.vllm_hook.engines.model import BLOCK, VOCAB, save_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="its servers are those of the CPU build"),
]

# The CPU build would run its one worker in a process of its own, whose counters the market does not hear of.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class Server:
    """One API server: what ``vllm serve`` starts, whose command line does not know vLLM's CPU build by its name."""

    def __init__(self, folder: Path, name: str, model: str) -> None:
        self.port = free_port()
        transfer = {
            "kv_connector": "KVMarketConnector",
            "kv_connector_module_path": "vllm_hook",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"address": str(folder / "s")},
        }
        arguments = ["--model", model, "--port", str(self.port), "--host", "127.0.0.1", "--skip-tokenizer-init"]
        arguments += ["--kv-transfer-config", json.dumps(transfer), "--enable-prompt-tokens-details"]
        arguments += ["--dtype", "float32", "--block-size", str(BLOCK), "--max-model-len", "1024", "--enforce-eager"]
        arguments += ["--num-gpu-blocks-override", "64", "--max-num-seqs", "4"]
        self.market, self.model = str(folder / "s"), model
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments],
                stdout=log,
                stderr=log,
                env=child_environment({**CPU, **ONE_PROCESS}),
                start_new_session=True,
            )

    def get(self, path: str, body: Any = None) -> bytes:
        """Ask the server."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bytes(answer.read())

    def wait(self, seconds: float = 500) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.get("/health")
            except urllib.error.URLError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
                time.sleep(0.2)
            else:
                return

    def complete(self, prompt: list[int], tokens: int = 1, **more: Any) -> tuple[list[int], int]:
        """The tokens that follow, greedily, and how many of the prompt's were not computed here."""
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        answer = json.loads(self.get("/v1/completions", {**asked, "return_token_ids": True, **more}))
        details = answer["usage"]["prompt_tokens_details"] or {"cached_tokens": 0}
        return answer["choices"][0]["token_ids"], details["cached_tokens"] or 0

    def close(self) -> None:
        """End it and its engine process."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as name:
        folder = Path(name)
        model = save_tiny_llama(folder / "model")
        found = [Server(folder, name, model) for name in ("first", "second")]
        try:
            for server in found:
                server.wait()
            yield found
        finally:
            for server in found:
                server.close()


def test_one_server_imports_what_the_other_computed(servers: list[Server]):
    first, second = servers
    pick = random.Random(3)
    shared = [pick.randrange(VOCAB) for _ in range(400)]
    first.complete([*shared, 1])
    time.sleep(0.5)
    tokens, cached = second.complete([*shared, 2], 16)
    alone, nothing = first.complete([*shared, 2], 16, cache_salt="computes all of it")
    assert (cached, nothing) == (400 // BLOCK * BLOCK, 0)
    assert tokens == alone
    address = Address(second.market)
    until(lambda: {HITS, IMPORTED, FETCHED} <= member_of(address, second.port).counters.keys())
    status, counted = ask_status(address, facts=True), member_of(address, second.port).counters
    assert counted[HITS] == counted[IMPORTED] == cached and counted[FETCHED] > 0
    assert {member.label for member in status.members} == {Label(second.model, each.port) for each in servers}
    (space,) = status.spaces
    told = {fact.name: fact.text for fact in space.facts}
    assert told["configuration.model_config.dtype"] == "torch.float32" and told["weights"].startswith("[(0, 'files")


def member_of(address: Address, port: int) -> MemberStatus:
    """The engine of this server."""
    return next(member for member in ask_status(address).members if member.label.port == port)


def test_an_aborted_request_hurts_nobody(servers: list[Server]):
    first, second = servers
    pick = random.Random(4)
    prompt = [pick.randrange(VOCAB) for _ in range(700)]
    body = json.dumps({"prompt": prompt, "max_tokens": 300, "ignore_eos": True, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", first.port)) as line:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        line.sendall(head.encode() + b"\r\n\r\n" + body)
        line.recv(64)  # it has begun
    time.sleep(0.5)
    tokens, _ = second.complete(prompt, 16)
    assert tokens == first.complete(prompt, 16, cache_salt="computes all of it")[0]
