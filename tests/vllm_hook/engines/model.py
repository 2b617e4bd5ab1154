"""Tiny models and an adapter with random weights from a fixed seed, saved for vLLM to load."""

from __future__ import annotations

import json
from pathlib import Path

from bench.engines.process import GPUS

VOCAB = 997
BLOCK = 32


def save_tiny_llama(
    folder: Path, layers: int = 3, rope_theta: float = 10000.0, vocab: int = VOCAB, spread: float = 0.2, seed: int = 0
) -> str:
    """Save a Llama in float32, so that greedy tokens do not depend on how a prefill is chunked; returns its path.

    With a small vocabulary and a small `spread` of its weights the model repeats tokens now and then.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        rope_theta=rope_theta,
        initializer_range=spread,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return str(folder)


def save_tiny_hybrid(folder: Path) -> str:
    """Save a Qwen3-Next in bfloat16: three layers with a recurrent state for each one with attention."""
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    config = Qwen3NextConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        max_position_embeddings=4096,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        mlp_only_layers=[0, 1, 2],
        layer_types=["linear_attention"] * 3 + ["full_attention"],
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen3NextForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def save_tiny_adapter(folder: Path, layers: int = 3) -> str:
    """Save a LoRA adapter for the Llama, strong enough to change its tokens."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    folder.mkdir()
    names = [f"base_model.model.model.layers.{i}.self_attn.{name}_proj" for i in range(layers) for name in "qv"]
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_A.weight"] = torch.randn(8, 128)
        tensors[f"{name}.lora_B.weight"] = torch.randn(128 if name.endswith("q_proj") else 64, 8)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def llm_options() -> dict[str, object]:
    """Arguments of ``vllm.LLM``: little memory, 63 usable pages of 32 tokens; CUDA graphs on GPUs.

    On GPUs the size of the cache is given: vLLM must not measure free memory while other engines start and end.
    """
    graphs = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 64 << 20}
    device = graphs if GPUS else {"enforce_eager": True}
    return {
        "dtype": "float32",
        "block_size": BLOCK,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "num_gpu_blocks_override": 64,
        **device,
    }
