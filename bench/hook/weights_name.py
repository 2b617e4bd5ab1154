"""What it costs to name an engine's weights by their content, beside a plain reduction that reads the same bytes.

    python -m bench.hook.weights_name --write h200x1   on the first GPU, 16 GB: the tensors of Llama-3.1-8B in bf16
    python -m bench.hook.weights_name --cpu            small ones on the CPU: shows that it runs, its times mean nothing

`first` is the first checksum of a process: it loads the kernel, and compiles it if Triton's cache does not have it. The
ceiling of the checksums is torch's sum over as many bytes. The digest is taken of files that were just written, so they
are in the page cache: `read` is the first time, `kept` a later one, with cached digests. Its ceiling is a read of the
files. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from bench import report
from bench.engines.shapes import LLAMA_8B
from vllm_hook.identity.files import WeightFile, digest_of
from vllm_hook.identity.tensors import checksum_of

FILES = 4
FILE_BYTES, SMALL = 1 << 30, 16 << 20  # bytes of each file; the same with --cpu


def shapes(scale: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and shapes of Llama-3.1-8B's tensors as vLLM holds them, with widths divided by `scale`."""
    hidden, inner, vocab = (LLAMA_8B[key] // scale for key in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = LLAMA_8B["num_key_value_heads"] * LLAMA_8B["head_dim"] // scale
    yield from (("embed_tokens", (vocab, hidden)), ("lm_head", (vocab, hidden)), ("norm", (hidden,)))
    for layer in range(LLAMA_8B["num_hidden_layers"]):
        yield f"layers_{layer}_qkv_proj", (hidden + 2 * kv, hidden)
        yield f"layers_{layer}_o_proj", (hidden, hidden)
        yield f"layers_{layer}_gate_up_proj", (2 * inner, hidden)
        yield f"layers_{layer}_down_proj", (hidden, inner)
        yield f"layers_{layer}_input_layernorm", (hidden,)
        yield f"layers_{layer}_post_attention_layernorm", (hidden,)


def model(device: str, scale: int, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """A module with these tensors, random values in them, each passed through `change`."""
    made = torch.nn.Module()
    for name, shape in shapes(scale):
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device).uniform_(-1, 1)
        made.register_parameter(name, torch.nn.Parameter(change(tensor), requires_grad=False))
    return made


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it is, contiguous."""
    return tensor


def odd(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the (bf16) tensor at an address that is not a multiple of 4."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    room[1:] = tensor.view(-1)
    return room[1:].view(tensor.shape)


def gaps(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor with unused elements after each row."""
    return torch.nn.functional.pad(tensor, (0, 8))[..., : tensor.shape[-1]]


def times(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each call, until its result is in host memory."""
    spent = []
    for _ in range(count):
        begin = perf_counter()
        call()
        spent.append(1e3 * (perf_counter() - begin))
    return spent


def row(name: str, samples: list[float], size: int, ceiling: float) -> dict[str, Any]:
    """One row of the results."""
    found = {"name": name, "bytes": size, **report.percentiles(samples), "unit": "ms", "ceiling": round(ceiling, 3)}
    return found | {"ratio": round(ceiling / found["p50"], 4) if found["p50"] else 0.0, "samples": len(samples)}


def checksums(repeats: int, cpu: bool) -> Iterable[dict[str, Any]]:
    """The rows for checksums of models on the first GPU, or of small ones on the CPU."""
    for name, change, scale in (("plain", plain, 1), ("odd addresses", odd, 4), ("rows with gaps", gaps, 4)):
        made = model("cpu", 16, change) if cpu else model("cuda", scale, change)
        tensors = list(made.parameters())
        size = sum(tensor.nbytes for tensor in tensors)
        flat = torch.zeros(size // 4, dtype=torch.float32, device=tensors[0].device)
        first = times(lambda made=made: checksum_of(made), 1)
        ceiling = min(times(lambda flat=flat: flat.sum().cpu(), repeats))
        if name == "plain":
            yield row("checksum, first", first, size, ceiling)
        yield row(f"checksum, {name}", times(lambda made=made: checksum_of(made), repeats), size, ceiling)


def digests(repeats: int, file_bytes: int) -> Iterable[dict[str, Any]]:
    """The rows for digests of FILES files of so many bytes each."""
    with tempfile.TemporaryDirectory(prefix="kvm-", dir="/tmp") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        paths = [Path(folder) / f"model-{number}.safetensors" for number in range(FILES)]
        for number, path in enumerate(paths):
            path.write_bytes(bytes([number]) * file_bytes)
        size = FILES * file_bytes

        def name() -> None:
            opened = [WeightFile(path) for path in paths]
            digest_of(opened)
            for file in opened:
                file.close()

        def read() -> None:
            buffer = bytearray(1 << 20)
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass

        read()
        ceiling = min(times(read, 3))
        yield row("digest of files, read", times(name, 1), size, ceiling)
        yield row("digest of files, kept", times(name, repeats), size, ceiling)


def main() -> None:
    """Measure, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-weights.json")
    parser.add_argument("--cpu", action="store_true", help="small tensors and files, on the CPU")
    parser.add_argument("--repeats", type=int, help="20; CPU: 5")
    options = parser.parse_args()
    repeats = options.repeats or (5 if options.cpu else 20)
    rows = [*checksums(repeats, options.cpu), *digests(repeats, SMALL if options.cpu else FILE_BYTES)]
    columns = [*dict.fromkeys(key for each in rows for key in each if key != "name")]
    print(f"{'':28}" + "".join(f"{column:>14}" for column in columns))
    for each in rows:
        print(f"{each['name']:28}" + "".join(f"{each[column]:>14}" for column in columns))
    if options.write:
        packages = ("torch", "triton", "xxhash")
        report.write(
            options.write, "weights", rows, packages, repeats=repeats, **report.facts([] if options.cpu else [0])
        )


if __name__ == "__main__":
    main()
