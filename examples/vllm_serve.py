"""Two `vllm serve` processes and a client: the second server imports what the first one has prefilled.

``python examples/vllm_serve.py [MODEL]`` starts both with one flag each (on two GPUs, on one, or on the CPU build of
vLLM), sends both requests with the same prefix, and prints for each the cached tokens and the time to the first token,
then the second server's metrics of kvmarket. Without MODEL it takes a small Llama with random weights.
Exits with 1 unless the second server imported the prefix and answered what the first one answers.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vllm_two_engines import CPU, CPU_ENVIRONMENT, GPU, TRANSFER, gpus, save_model

WORDS = 400  # words of the shared prefix for MODEL, whose own tokenizer is used
OUTPUT = 16
START_SECONDS = 900
METRICS = (
    "kvmarket_matched_tokens_total",
    "kvmarket_imported_tokens_total",
    "kvmarket_fetched_bytes_total",
    "kvmarket_fetch_seconds_count",
    "kvmarket_lost_blocks_total",
    "kvmarket_offered_blocks_total",
)


class Server:
    """A `vllm serve` process that was started, and requests to it."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self.port, self.log, self._process = name, port, log, process

    def wait(self) -> None:
        """Wait until the server answers. Exits with the end of its log if the server does not come up."""
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                self.get("/health")
            except (OSError, http.client.HTTPException):
                time.sleep(0.5)
            else:
                return
        sys.exit(f"the {self.name} server did not come up; its last words:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> str:
        """The body of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Each metric of kvmarket on the server's /metrics page, summed over its labels, by name."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith("kvmarket_"):
                sample, value = line.rsplit(" ", 1)
                name = sample.split("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def complete(self, prompt: Any, tokens: int = OUTPUT, salt: str = "") -> tuple[float, int, str]:
        """Stream one answer: (seconds to the first token, cached prompt tokens, the answer)."""
        ask = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        ask |= {"stream": True, "stream_options": {"include_usage": True}} | ({"cache_salt": salt} if salt else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start, first, cached, text = time.perf_counter(), 0.0, 0, ""
        try:
            connection.request("POST", "/v1/completions", json.dumps(ask), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                sys.exit(f"the {self.name} server refuses: {answer.read().decode()}")
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[len(b"data: ") :])
                if event["choices"]:
                    first = first or time.perf_counter() - start
                    text += event["choices"][0]["text"]
                if usage := event.get("usage"):
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        finally:
            connection.close()
        return first, cached, text


@contextmanager
def serve(name: str, model: str, folder: Path, gpu: str | None, arguments: list[str]) -> Iterator[Server]:
    """Start a `vllm serve` with the connector, without waiting for it; end it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    transfer = TRANSFER | {"kv_connector_extra_config": {"address": f"{folder}/market"}}
    # the module that `vllm serve` runs: the command needs a package named "vllm", and the CPU build has another name
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "model"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    command += ["--kv-transfer-config", json.dumps(transfer), *arguments]
    environment = os.environ | {"PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"PYTHONSAFEPATH": "1"}  # else -m imports from the current directory too
    environment |= CPU_ENVIRONMENT if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    path = folder / f"{name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield Server(name, port, process, path)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def small_model(folder: Path, on_gpu: bool) -> tuple[str, list[str]]:
    """Save a Llama with random weights and a tokenizer of numbers; returns its path and arguments for `vllm serve`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    size = GPU if on_gpu else CPU
    save_model(folder, size, on_gpu)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(size["vocab_size"])}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0", eos_token="1").save_pretrained(folder)
    arguments = ["--dtype", size["dtype"], "--max-model-len", str(size["prefix"] + 512)]
    return str(folder), [*arguments, *(["--load-format", "dummy"] if on_gpu else [])]


def main() -> int:
    """Start both servers, ask both, and print a table; 0 if the prefix was imported and the answers are equal."""
    from rich.console import Console
    from rich.table import Table

    found = gpus()
    places: list[str | None] = [found[0], found[-1]] if found else [None, None]
    pick = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        device = ["--gpu-memory-utilization", "0.4"] if found else ["--enforce-eager", "--max-num-seqs", "4"]
        device += [] if found else ["--block-size", "32", "--num-gpu-blocks-override", "256"]
        if sys.argv[1:]:
            model, arguments = sys.argv[1], device
            shared: Any = " ".join(pick.choice(("red", "green", "blue")) for _ in range(WORDS))
            questions: list[Any] = [" Which of them is first?", " Which of them is last?"]
        else:
            model, more = small_model(folder / "model", bool(found))
            arguments, size = device + more, GPU if found else CPU
            shared = [pick.randrange(2, size["vocab_size"]) for _ in range(size["prefix"])]
            questions = [[pick.randrange(2, size["vocab_size"]) for _ in range(40)] for _ in range(2)]
        servers = [
            stack.enter_context(serve(n, model, folder, place, arguments))
            for n, place in zip(("first", "second"), places, strict=True)
        ]
        first, second = servers
        for server in servers:
            server.wait()
            server.complete(questions[0])  # the first request of a process is slow for other reasons
        rows = [("first", "computes the prefix", first.complete(shared + questions[0]))]
        time.sleep(0.5)
        rows.append(("second", "imports it", second.complete(shared + questions[1])))
        rows.append(("second", "has it by now", second.complete(shared + questions[1])))
        rows.append(("first", "computes all, to compare", first.complete(shared + questions[1], salt="alone")))
        metrics = second.metrics()
    table = Table(title="two vllm serve processes on " + ("GPUs" if found else "the CPU"))
    for column in ("server", "request", "cached tokens", "ms to the first token"):
        table.add_column(column, justify="left" if column in ("server", "request") else "right")
    for server_name, what, (seconds, cached, _) in rows:
        table.add_row(server_name, what, f"{cached:,}", f"{1e3 * seconds:.1f}")
    console = Console(width=120)
    console.print(table)
    for metric in METRICS:
        console.print(f"second server's /metrics: {metric} {metrics.get(metric, 0.0):,.0f}", highlight=False)
    imported = metrics.get("kvmarket_imported_tokens_total", 0.0) > 0 and rows[1][2][1] > 0
    same = rows[1][2][2] == rows[3][2][2]
    console.print("NOTHING IMPORTED" if not imported else "answers identical" if same else "ANSWERS DIFFER")
    return 0 if imported and same else 1


if __name__ == "__main__":
    sys.exit(main())
