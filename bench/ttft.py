"""Time to the first token of a prompt whose prefix lies.

Nowhere, in the engine's own cache, in a peer's pool, in host memory.

    python -m bench.ttft --write h200x2         two GPUs; three phases of two vLLM engines with dummy weights, some six
    minutes

One request at a time, Llama-3.1-8B shape, bf16, CUDA graphs, every prompt fresh random tokens. `bytes`: KV of the
prompt, 131,072 a token. The ceiling is the time that cannot be beaten: the own cache's, plus for a peer those bytes at
the rate of a contiguous peer copy, measured in the same run. `ratio` is that ceiling over the median.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pynvml
import torch

from bench import report
from tests.vllm_hook.processes import EngineProcess

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
}
TOKEN_BYTES = 2 * 32 * 8 * 128 * 2
OFFLOAD_GIB = 40
Samples = dict[tuple[str, int], list[float]]


def copy_rate(source: int, destination: int, repeats: int = 20) -> float:
    """GB/s of one contiguous copy of 1 GiB by the copy engine from one GPU to the other: the ceiling. Median."""
    there, here = (torch.empty(1 << 30, dtype=torch.uint8, device=f"cuda:{index}") for index in (source, destination))
    rates = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize(destination)
        start = time.perf_counter()
        here.copy_(there)
        torch.cuda.synchronize(destination)
        rates.append(here.numel() / (time.perf_counter() - start) / 1e9)
    return sorted(rates[3:])[repeats // 2]


class Bench:
    """Two engines at a time, each on a GPU of its own."""

    def __init__(self, folder: Path, gpus: list[int], lengths: list[int], repeats: int) -> None:
        self.folder, self.gpus, self.lengths, self.repeats = folder, gpus, lengths, repeats
        self.samples: Samples = defaultdict(list)
        self.wrong: list[str] = []
        self._chance = random.Random(1)
        (folder / "config.json").write_text(json.dumps(LLAMA_8B))

    def start(self, name: str, gpu: int, **options: Any) -> EngineProcess:
        """Start an engine on one GPU, which is the only one it sees."""
        llm = {
            "load_format": "dummy",
            "max_model_len": max(self.lengths) + 512,
            "gpu_memory_utilization": 0.6 if len(set(self.gpus)) > 1 else 0.35,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 8192,
            **options.pop("llm", {}),
        }
        config = {"model": str(self.folder), "gpu": True, "llm": llm, **options}
        return EngineProcess(self.folder / f"{name}.log", config, env={"CUDA_VISIBLE_DEVICES": str(gpu)})

    def prompt(self, tokens: int) -> list[int]:
        """Fresh random tokens."""
        return [self._chance.randrange(1000, 120_000) for _ in range(tokens)]

    def ask(self, engine: EngineProcess, prompt: list[int], column: str = "", cached: int | None = None) -> list[int]:
        """Time one token of `prompt`; `cached` is how many tokens vLLM must report as not computed."""
        answer = engine.generate([prompt], tokens=1)
        if cached is not None and answer["cached"] != [cached]:
            self.wrong.append(f"{column} {len(prompt)}: {answer['cached']} cached tokens instead of {cached}")
        if column:
            self.samples[column, len(prompt)].append(answer["ms"])
        return answer["tokens"][0]

    def warm(self, *engines: EngineProcess) -> None:
        """Compile and capture what the first requests would otherwise pay for."""
        for _ in range(2):
            for tokens in self.lengths:
                prompt = self.prompt(tokens)
                for engine in (*engines, *engines):
                    self.ask(engine, prompt)
                    time.sleep(0.05)

    def peers(self, address: str) -> None:
        """Both engines with the hook: the second takes what the first has computed, then has it itself."""
        owner, reader = (self.start(f"hook-{at}", gpu, address=address) for at, gpu in enumerate(self.gpus))
        with owner, reader:
            owner.wait(200)
            reader.wait(200)
            self.warm(owner, reader)
            for tokens in self.lengths:
                whole = (tokens - 1) // 16 * 16
                for _ in range(self.repeats):
                    prompt = self.prompt(tokens)
                    first = self.ask(owner, prompt, "prefill, hook on", 0)
                    time.sleep(0.02)
                    taken = self.ask(reader, prompt, "peer's pool", whole)
                    again = self.ask(reader, prompt, "own prefix cache, hook on", whole)
                    if not first == taken == again:
                        self.wrong.append(f"{tokens} tokens: first tokens {first}, {taken} imported, {again} own cache")
            print("counters of the reader:", json.dumps(reader.ask("counters")))

    def baselines(self) -> None:
        """One engine without a connector, one with vLLM's own offload to host memory."""
        plain = self.start("plain", self.gpus[0])
        host = self.start("offload", self.gpus[1], llm={"kv_offloading_size": OFFLOAD_GIB})
        with plain, host:
            plain.wait(200)
            host.wait(200)
            self.warm(plain, host)
            for tokens in self.lengths:
                whole = (tokens - 1) // 16 * 16
                for _ in range(self.repeats):
                    prompt = self.prompt(tokens)
                    self.ask(plain, prompt, "prefill", 0)
                    self.ask(plain, prompt, "own prefix cache", whole)
                    self.ask(host, prompt, "prefill, offload on")
                    self.ask(host, self.prompt(64))  # a step more, so that the stores are done
                    time.sleep(0.1)
                    host.ask("reset")
                    self.ask(host, prompt, "host memory (OffloadingConnector)")

    def rows(self, rate: float) -> list[dict[str, Any]]:
        """The rows of the result file."""
        found = []
        for (column, tokens), times in self.samples.items():
            own = report.percentiles(self.samples["own prefix cache", tokens])["p50"]
            size = tokens * TOKEN_BYTES
            ceiling = own + (1e3 * size / (rate * 1e9) if column == "peer's pool" else 0)
            spread = report.percentiles(times)
            found.append(
                {
                    "name": f"{column}, {tokens} tokens",
                    "column": column,
                    "tokens": tokens,
                    "bytes": size,
                    **spread,
                    "unit": "ms",
                    "ceiling": round(ceiling, 2),
                    "ratio": round(ceiling / spread["p50"], 3),
                }
            )
        return found


def driver() -> str:
    """Version of the NVIDIA driver."""
    pynvml.nvmlInit()
    return str(pynvml.nvmlSystemGetDriverVersion())


def main() -> None:
    """Measure, print, and write if asked. Exits 1 when a token or a cached count was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-ttft.json")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpus", type=int, nargs=2, default=[0, 1], help="of the owner and of the reader; may be one")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 10_000, 32_768])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ttft-") as folder:
        bench = Bench(Path(folder), options.gpus, options.lengths, options.repeats)
        rate = copy_rate(*options.gpus)
        torch.cuda.empty_cache()
        bench.peers(str(Path(folder) / "market"))
        bench.baselines()
    rows = bench.rows(rate)
    columns = list(dict.fromkeys(row["column"] for row in rows))
    print(f"\nms to the first token, median of {options.repeats}; contiguous copy {rate:.0f} GB/s\n")
    print(f"{'tokens':>8}" + "".join(f"{column:>36}" for column in columns))
    for tokens in options.lengths:
        cells = {row["column"]: row["p50"] for row in rows if row["tokens"] == tokens}
        print(f"{tokens:>8}" + "".join(f"{cells.get(column, ''):>36}" for column in columns))
    if options.write:
        gpu = torch.cuda.get_device_name(0)
        facts = {
            "gpu": gpu,
            "repeats": options.repeats,
            "copy_GBps": round(rate, 1),
            "driver": driver(),
            "wrong": bench.wrong,
        }
        print(report.write(options.write, "ttft", rows, ("torch", "triton", "vllm", "kvmarket"), **facts))
    for line in bench.wrong:
        print("WRONG:", line)
    raise SystemExit(bool(bench.wrong))


if __name__ == "__main__":
    main()
