"""A `vllm serve` process, and requests to it over HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.engines.process import child_environment

SECONDS = 600  # a request or a start that takes longer hangs
MODEL = "model"  # the name by which requests ask for it


class ServerError(AssertionError):
    """A server died or refused a request; says what it printed last."""


def save_tokenizer(folder: Path, words: int) -> None:
    """Save a tokenizer whose words are the numbers from 0 to `words`, so that a server's answers can be compared."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = Tokenizer(models.WordLevel({str(i): i for i in range(words)}, unk_token="0"))
    numbers.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=numbers, unk_token="0", eos_token="1").save_pretrained(folder)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def arguments(settings: dict[str, Any]) -> list[str]:
    """vLLM's arguments on the command line, from their names and values in Python."""
    found = []
    for name, value in settings.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return found


class Server:
    """A running `vllm serve` with its engine in a process of its own. Close it, or use it as a context manager."""

    def __init__(self, log: Path, model: str, settings: dict[str, Any], environment: dict[str, str]) -> None:
        """Start the process; `wait` says when it is up. `settings` are vLLM's arguments by their names in Python."""
        self.log, self.port = log, free_port()
        # what `vllm serve` runs: the command asks for the version of a package "vllm", which the CPU build is not
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--enable-prompt-tokens-details", *arguments(settings)]
        environment = child_environment({"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", **environment})
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def wait(self, seconds: float = SECONDS) -> Server:
        """Wait until the server answers. Raises ServerError when it does not come up."""
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end:
            try:
                self._ask("GET", "/health")
            except (OSError, http.client.HTTPException):
                time.sleep(0.5)
            else:
                return self
        raise ServerError(f"the server did not come up; it printed\n{self.tail()}")

    def complete(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        """Stream a greedy answer of so many tokens.

        Returns ``ms`` from sending the request to its first token, that ``first`` token, and how many prompt tokens
        were ``cached``. The body of the request is made and the server connected to before the clock runs: a server
        closes connections that are idle for some seconds.
        """
        ask = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        ask |= {"stream": True, "stream_options": {"include_usage": True}}
        body, ms, first, cached = json.dumps(ask).encode(), 0.0, "", 0
        self._connection.close()
        self._connection.connect()
        start = time.perf_counter()
        answer = self._send("POST", "/v1/completions", body)
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            ms = ms or 1e3 * (time.perf_counter() - start)
            event = json.loads(line[len(b"data: ") :])
            if event["choices"]:
                first = first or event["choices"][0]["text"].strip()
            if usage := event.get("usage"):
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return {"ms": ms, "first": first, "cached": cached}

    def reset(self) -> None:
        """Empty the server's own prefix cache. Raises ServerError where vLLM refuses."""
        self._ask("POST", "/reset_prefix_cache")

    def metrics(self) -> dict[str, float]:
        """The sums of all samples of each counter of kvmarket on the server's page, by name."""
        found: dict[str, float] = {}
        for line in self._ask("GET", "/metrics").splitlines():
            sample, value = line.rsplit(" ", 1)
            name = sample.split("{")[0]
            if name.startswith("kvmarket_") and name.endswith("_total"):
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def tail(self, lines: int = 40) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End the process and its engine's, politely first."""
        self._connection.close()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str) -> str:
        self._connection.close()
        return self._send(method, path).read().decode()

    def _send(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        """The answer, its body unread. Raises ServerError where the server refuses."""
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        if answer.status != http.client.OK:
            raise ServerError(f"{method} {path} is refused: {answer.read().decode()}; it printed\n{self.tail()}")
        return answer
