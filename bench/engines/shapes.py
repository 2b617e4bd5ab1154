"""Starts the engines of the hook's benchmarks: the model's shape, dummy weights, and options for a GPU or a CPU.

On GPUs the shape is Llama-3.1-8B in bf16 with CUDA graphs. On a CPU it is tiny: that shows that a benchmark runs from
end to end, and its times mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pynvml

from bench.engines.engine import CPU, transfer_config
from bench.engines.process import EngineProcess
from bench.engines.server import Server, save_tokenizer

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
TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "torch_dtype": "float32",
    "initializer_range": 0.2,
}
MLA = LLAMA_8B | {  # attention of DeepSeek-V2-Lite: 16 heads over one latent vector of 512 values, and 64 rotary ones
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 16,  # all layers: no experts
    "n_routed_experts": 64,
    "rope_theta": 10000.0,
}
WEIGHTS, OTHER = 16.1e9, 5e9  # bytes of an engine: LLAMA_8B, the largest; activations, graphs, contexts
START_SECONDS = 600  # longest wait for an engine; with CUDA graphs one alone takes 40 s
COMMANDS = "bench.engines.commands"  # further commands of the engine processes


def token_bytes(shape: dict[str, Any]) -> int:
    """Bytes of KV per token, over all layers: a key and a value per head, or one latent vector (MLA)."""
    width = {"bfloat16": 2, "float32": 4}[shape["torch_dtype"]]
    latent = shape.get("kv_lora_rank")
    numbers = latent + shape["qk_rope_head_dim"] if latent else 2 * shape["num_key_value_heads"] * shape["head_dim"]
    return int(shape["num_hidden_layers"] * numbers) * width


def gpu_bytes(gpu: int) -> int:
    """Total memory of a GPU, in bytes."""
    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu)).total)


def await_up(stack: ExitStack, engines: Iterable[EngineProcess]) -> None:
    """Wait until all engines are up; `stack` closes them, even after an exception."""
    engines = [stack.enter_context(engine) for engine in engines]
    for engine in engines:
        engine.wait(START_SECONDS)


class Engines:
    """Starts engines of one shape, on the CPU if `gpus` is empty. `folder` holds their logs and the model."""

    def __init__(self, folder: Path, gpus: list[int], shape: dict[str, Any] = LLAMA_8B) -> None:
        self.gpus = gpus
        self.shape = shape if gpus else TINY
        self.block_size = 16 if gpus else 32
        self.token_bytes = token_bytes(self.shape)
        self.address = str(folder / "market")
        self._folder = folder
        (folder / "config.json").write_text(json.dumps(self.shape))

    def start(
        self, name: str, gpu: int = 0, *, share: float, longest: int, seqs: int = 16, gpus: int = 1, **options: Any
    ) -> EngineProcess:
        """Start an engine on `gpus` GPUs, the first one `self.gpus[gpu]`; it sees no other GPU.

        `share` is its part of each GPU's memory, `longest` its longest request in tokens, `seqs` how many requests run
        at once. Engines of one GPU may start together, because the size of their caches is set, not measured. The
        options ``llm`` and ``env`` override what is set here; `address` makes the engine join that market.
        """
        llm, environment = self._settings(gpu, share, longest, seqs, gpus)
        llm |= options.pop("llm", {})
        environment |= options.pop("env", {})
        config = {"model": str(self._folder), "gpu": bool(self.gpus), "llm": llm, "commands": COMMANDS, **options}
        return EngineProcess(self._folder / f"{name}.log", config, env=environment)

    def serve(self, name: str, gpu: int = 0, *, share: float, longest: int, address: str | None = None) -> Server:
        """Start `vllm serve` with the same settings; `address` gives it the connector, with that market."""
        llm, environment = self._settings(gpu, share, longest, 16, 1)
        if address is not None:
            llm["kv_transfer_config"] = transfer_config({"address": address})
        save_tokenizer(self._folder, self.shape["vocab_size"])
        environment |= {} if self.gpus else CPU
        return Server(self._folder / f"{name}.log", str(self._folder), llm, environment)

    def _settings(
        self, gpu: int, share: float, longest: int, seqs: int, gpus: int
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """vLLM's arguments of an engine, by their names in Python, and its variables."""
        llm: dict[str, Any] = {"load_format": "dummy", "max_model_len": longest, "max_num_seqs": seqs}
        environment = {"VLLM_LOGGING_LEVEL": "WARNING"}
        if self.gpus:
            seen = [self.gpus[(gpu + rank) % len(self.gpus)] for rank in range(gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, seen))
            room = share * gpu_bytes(seen[0]) - WEIGHTS / gpus - OTHER
            llm |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": int(room)}
            llm |= {"max_num_batched_tokens": 8192, "tensor_parallel_size": gpus}
        else:
            llm |= {"dtype": "float32", "block_size": self.block_size, "enforce_eager": True}
            llm |= {"max_num_batched_tokens": max(2048, seqs)}
        return llm, environment
