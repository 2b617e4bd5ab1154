"""A tiny Llama with random weights of a fixed seed, saved where vLLM can load it."""

from __future__ import annotations

from pathlib import Path

VOCAB = 997
BLOCK = 32


def save_tiny_llama(
    folder: Path, layers: int = 3, rope_theta: float = 10000.0, vocab: int = VOCAB, spread: float = 0.2
) -> str:
    """Build and save the model; float32, so that greedy tokens do not hang on how a prefill was cut up.

    With few tokens in its vocabulary and weights of a small `spread` it repeats itself now and then.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
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


def llm_options(gpus: int = 0) -> dict[str, object]:
    """Arguments of ``vllm.LLM``: little memory, 63 usable pages of 32 tokens; with CUDA graphs where there are GPUs."""
    device = {"gpu_memory_utilization": 0.1} if gpus else {"enforce_eager": True}
    return {
        "dtype": "float32",
        "block_size": BLOCK,
        "max_model_len": 1024,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
        "num_gpu_blocks_override": 64,
        **device,
    }
