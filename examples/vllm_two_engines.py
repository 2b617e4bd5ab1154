"""Two stock vLLM engines share a prefix: the first computes it, the second imports its blocks and computes the rest.

``python examples/vllm_two_engines.py`` (or ``make demo-vllm``) starts both as processes, each on a GPU of its own if
there are two, on one GPU, or on the CPU build of vLLM, and prints what the import saved. TRANSFER below is all that an
engine needs to take part. Exits with 1 when the outputs differ.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRANSFER = {
    "kv_connector": "KVMarketConnector",
    "kv_connector_module_path": "vllm_hook",  # not needed if kvmarket is installed: vLLM then knows the name
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
QUESTION = 40  # tokens that the two prompts do not share
OUTPUT = 32
GPU = {"vocab_size": 32000, "hidden_size": 2048, "layers": 16, "heads": 16, "dtype": "bfloat16", "prefix": 8192}
CPU = {"vocab_size": 4096, "hidden_size": 512, "layers": 6, "heads": 8, "dtype": "float32", "prefix": 1920}
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
    "TORCHDYNAMO_DISABLE": "1",
}


def engine(folder: str, size: dict[str, Any], on_gpu: bool) -> None:
    """Run one engine: it reads a request per line from stdin and prints [seconds, cached tokens, output] per line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM's own output goes to stderr
    from vllm import LLM, SamplingParams

    place = {"gpu_memory_utilization": 0.4} if on_gpu else {"block_size": 32, "num_gpu_blocks_override": 256}
    llm = LLM(
        f"{folder}/model",
        load_format="dummy" if on_gpu else "auto",
        skip_tokenizer_init=True,
        dtype=size["dtype"],
        seed=0,
        max_model_len=size["prefix"] + 512,
        max_num_seqs=4,
        enforce_eager=not on_gpu,
        enable_prefix_caching=True,
        kv_transfer_config=TRANSFER | {"kv_connector_extra_config": {"address": f"{folder}/market"}},
        **place,
    )
    print(json.dumps("up"), file=answers)
    for line in sys.stdin:
        ask = json.loads(line)
        prompt: Any = {"prompt_token_ids": ask["prompt"]}
        if ask["salt"]:
            prompt["cache_salt"] = ask["salt"]  # no other request has this salt: everything is computed
        sampling = SamplingParams(max_tokens=ask["tokens"], temperature=0.0, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        (output,) = llm.generate([prompt], sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, output.num_cached_tokens, list(output.outputs[0].token_ids)]), file=answers)


def save_model(folder: Path, size: dict[str, Any], on_gpu: bool) -> int:
    """Save a Llama with random weights (on a GPU only its configuration); returns the bytes of KV per token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    head = size["hidden_size"] // size["heads"]
    config = LlamaConfig(
        vocab_size=size["vocab_size"],
        hidden_size=size["hidden_size"],
        intermediate_size=4 * size["hidden_size"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"] // 2,
        head_dim=head,
        max_position_embeddings=16384,
        initializer_range=0.1,
        architectures=["LlamaForCausalLM"],
    )
    if on_gpu:
        config.save_pretrained(folder)
    else:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return 2 * size["layers"] * (size["heads"] // 2) * head * getattr(torch, size["dtype"]).itemsize


class Process:
    """One engine process and its log."""

    def __init__(self, name: str, folder: Path, size: dict[str, Any], gpu: str | None) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONHASHSEED": "0"}
        environment |= CPU_ENVIRONMENT if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        command = [sys.executable, __file__, "engine", str(folder), json.dumps(size), json.dumps(gpu is not None)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
            )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the {self.name} engine ended early; its last words:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def run(self, prompt: list[int], tokens: int = 1, salt: str = "") -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens, "salt": salt}).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def gpus() -> list[str]:
    """The GPUs that may be used, named as in CUDA_VISIBLE_DEVICES; empty without any."""
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    return names if torch.cuda.is_available() else []


def main() -> int:
    """Start both engines, have the second import what the first computed, print the table."""
    from rich.console import Console
    from rich.table import Table

    found = gpus()
    size = GPU if found else CPU
    places: list[str | None] = [found[0], found[-1]] if found else [None, None]
    pick = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [pick.randrange(size["vocab_size"]) for _ in range(count)]

    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as name:
        folder = Path(name)
        bytes_per_token = save_model(folder / "model", size, bool(found))
        engines = [Process(n, folder, size, place) for n, place in zip(("first", "second"), places, strict=True)]
        first, second = engines
        try:
            for one in engines:
                one.answer()
                one.run(tokens(size["prefix"] + QUESTION))  # the first request of a process is slow for other reasons
            shared = tokens(size["prefix"])
            warm = tokens(size["prefix"])
            first.run(warm + tokens(QUESTION))
            first.run(shared + tokens(QUESTION))
            time.sleep(0.5)
            second.run(warm + tokens(QUESTION))  # maps the first engine's memory
            without, nothing, _ = second.run(tokens(size["prefix"] + QUESTION))
            prompt = shared + tokens(QUESTION)
            seconds, imported, _ = second.run(prompt)
            _, _, here = second.run(prompt, OUTPUT)
            _, alone, there = first.run(prompt, OUTPUT, salt="computes it all")
        finally:
            for one in engines:
                one.close()
    same = here == there and alone == 0 and nothing == 0 and imported > 0
    table = Table(title="two vLLM engines on " + ("two GPUs" if len(found) > 1 else "one GPU" if found else "the CPU"))
    columns = ("prompt tokens", "imported", "bytes", "first token, computed", "first token, imported", "outputs")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(
        f"{len(prompt):,}",
        f"{imported:,}",
        f"{imported * bytes_per_token:,}",
        f"{1e3 * without:.1f} ms",
        f"{1e3 * seconds:.1f} ms",
        "outputs identical" if same else "OUTPUTS DIFFER" if imported else "NOTHING IMPORTED",
    )
    Console(width=120).print(table)
    return 0 if same else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        engine(sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        sys.exit(main())
