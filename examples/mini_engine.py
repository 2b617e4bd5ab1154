"""A small paged transformer engine, as one could write it oneself, and the places where it calls kvmarket.

A Llama-like decoder (RMSNorm, RoPE, grouped-query attention, SwiGLU) with random weights of a fixed seed and a paged KV
cache. Read `MiniEngine.generate` for `match`, `fetch` and `publish`, and `MiniEngine.take` for `retire`.

    python examples/mini_engine.py          two engines, the second imports the first one's prefix

Tokens computed from an imported prefix are bit for bit those computed without it, by design: a prompt is computed in
chunks that begin at multiples of CHUNK, whatever was imported, and the last chunk is padded. So a row goes through the
same kernels with the same shapes in both cases. If an import ends within a chunk, the chunk's imported rows are
computed again, but not written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

import kvmarket

CHUNK = 256  # tokens computed at once: a multiple of every block size used here


@dataclass(frozen=True)
class Shape:
    """The size of a model; everything here goes into the fingerprint."""

    vocabulary: int = 8192
    layers: int = 6
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    inner: int = 1536
    dtype: torch.dtype = torch.float32
    seed: int = 20


SMALL = Shape()  # prefills 2,048 tokens in a second or two on two CPU cores
LARGE = Shape(32768, layers=12, hidden=4096, heads=32, kv_heads=8, head_dim=128, inner=14336, dtype=torch.bfloat16)


@dataclass(frozen=True)
class Result:
    """What `generate` did. `prefill_seconds` is the whole time before the first new token, with the import."""

    tokens: list[int]
    imported_tokens: int
    imported_bytes: int
    prefill_seconds: float
    fetch_seconds: float


class Model:
    """The decoder. It writes keys and values into a paged cache and reads them back through a block table."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        s, random = shape, torch.Generator(device).manual_seed(shape.seed)
        self.shape = shape

        def weight(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
            w = torch.empty(rows, columns, dtype=s.dtype, device=device)
            return w.normal_(0.0, gain * columns**-0.5, generator=random)

        # With these gains attention picks few tokens instead of averaging all, and its output is not small beside the
        # residual: so each token of the prefix matters for the next ones, and a wrong import changes the output.
        self.layers = [
            {
                "q": weight(s.heads * s.head_dim, s.hidden, 3.0),
                "k": weight(s.kv_heads * s.head_dim, s.hidden, 3.0),
                "v": weight(s.kv_heads * s.head_dim, s.hidden, 2.0),
                "o": weight(s.hidden, s.heads * s.head_dim),
                "gate": weight(s.inner, s.hidden),
                "up": weight(s.inner, s.hidden),
                "down": weight(s.hidden, s.inner),
            }
            for _ in range(s.layers)
        ]
        self.embedding = weight(s.vocabulary, s.hidden, s.hidden**0.5)
        self.head = weight(s.vocabulary, s.hidden)
        exponents = torch.arange(0, s.head_dim, 2, dtype=torch.float32, device=device) / s.head_dim
        self.frequencies = 10000.0**-exponents

    def rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """RoPE. x: (tokens, heads, head_dim); positions: (tokens,)."""
        angles = (positions[:, None].float() * self.frequencies)[:, None, :]
        (a, b), cos, sin = x.float().chunk(2, dim=-1), angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    @torch.inference_mode()
    def forward(
        self, tokens: list[int], start: int, write: range, blocks: list[int], cache: list[torch.Tensor]
    ) -> torch.Tensor:
        """Hidden states (len(tokens), hidden) of the tokens at positions `start` and on.

        Keys and values of the positions in `write` first go into `cache`, one tensor (slots, 2, block_size, kv_heads,
        head_dim) per layer. `blocks`: the slots of the sequence, in order.
        """
        s, rows, end = self.shape, len(tokens), start + len(tokens)
        device, block_size = cache[0].device, cache[0].shape[2]
        positions = torch.arange(start, end, device=device)
        table = torch.tensor(blocks + [0] * (-(-end // block_size) - len(blocks)), device=device)[
            : -(-end // block_size)
        ]
        written = torch.arange(write.start, write.stop, device=device)
        slots, offsets = table[written // block_size], written % block_size
        mask = torch.arange(len(table) * block_size, device=device)[None, :] <= positions[:, None]
        x = self.embedding[torch.tensor(tokens, device=device)]
        for w, pages in zip(self.layers, cache, strict=True):
            h = F.rms_norm(x, (s.hidden,))
            q = self.rotate((h @ w["q"].T).view(rows, s.heads, s.head_dim), positions)
            k = self.rotate((h @ w["k"].T).view(rows, s.kv_heads, s.head_dim), positions)
            v = (h @ w["v"].T).view(rows, s.kv_heads, s.head_dim)
            pages[slots, 0, offsets] = k[write.start - start : write.stop - start]
            pages[slots, 1, offsets] = v[write.start - start : write.stop - start]
            context = pages[table]  # gathered: (blocks, 2, block_size, kv_heads, head_dim)
            keys, values = (
                context[:, i].flatten(0, 1).repeat_interleave(s.heads // s.kv_heads, dim=1).transpose(0, 1)
                for i in range(2)
            )
            seen = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask)[0]
            x = x + seen.transpose(0, 1).reshape(rows, -1) @ w["o"].T
            h = F.rms_norm(x, (s.hidden,))
            x = x + (F.silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T
        return F.rms_norm(x, (s.hidden,))


class MiniEngine:
    """A model, its paged cache of `blocks` blocks, and its market. It runs one request at a time, greedily."""

    def __init__(
        self,
        device: str = "cpu",
        blocks: int = 256,
        block_size: int = 16,
        address: str | None = None,
        shape: Shape = SMALL,
        tenant: str = "",
        **facts: object,
    ) -> None:
        """Join the market at `address` (None: the user's own). `facts`: what else must agree before KV is reused."""
        self.device = torch.device(device)
        self.model, self.block_size = Model(shape, self.device), block_size
        page = (blocks, 2, block_size, shape.kv_heads, shape.head_dim)
        self.pages = [torch.zeros(page, dtype=shape.dtype, device=self.device) for _ in range(shape.layers)]
        self.free = deque(range(blocks))
        self.kept: deque[list[int]] = deque()  # blocks of finished sequences, the oldest first: still offered
        self.cache = kvmarket.PagedCache(self.pages, block_size=block_size, slot_dim=0)
        facts |= {"engine": "mini", "chunk": CHUNK, "device": self.device.type, **asdict(shape)}
        fingerprint = kvmarket.Fingerprint.of(**facts)
        self.market = kvmarket.connect(self.cache, fingerprint, tenant=tenant, address=address)

    def take(self, count: int) -> list[int]:
        """Take `count` blocks to write: free ones, then those of the oldest finished sequences. Raises ValueError."""
        while len(self.free) < count:
            if not self.kept:
                raise ValueError(f"{count} blocks wanted, {len(self.free)} free; make the engine with more blocks")
            old = self.kept.popleft()
            self.market.retire(old)  # from here on no reader takes bytes that we overwrite
            self.free.extend(old)
        return [self.free.popleft() for _ in range(count)]

    def generate(self, tokens: list[int], new_tokens: int, reuse: bool = True) -> Result:
        """Generate the `new_tokens` tokens that follow `tokens`. `reuse=False`: import nothing, compute everything."""
        if not tokens or new_tokens < 1:
            raise ValueError("nothing to do; give at least one token and ask for at least one")
        began = time.perf_counter()
        blocks = self.take(-(-(len(tokens) + new_tokens) // self.block_size))
        imported, fetch_seconds = 0, 0.0
        if reuse:
            hit = self.market.match(tokens)
            wanted = min(hit.blocks, (len(tokens) - 1) // self.block_size)  # leave one to compute: we need its logits
            fetching = time.perf_counter()
            imported = self.market.fetch(hit, blocks[:wanted]).wait()
            fetch_seconds = time.perf_counter() - fetching
        logits = self.prefill(tokens, imported * self.block_size, blocks)
        self.market.publish(tokens, blocks[: len(tokens) // self.block_size])  # imported ones too: we have them
        new = [int(logits.argmax())]
        prefill_seconds = time.perf_counter() - began
        while len(new) < new_tokens:
            new.append(int(self.step(tokens + new, blocks).argmax()))
        self.kept.append(blocks)
        nbytes = imported * self.cache.slot_bytes
        return Result(new, imported * self.block_size, nbytes, prefill_seconds, fetch_seconds)

    def prefill(self, tokens: list[int], computed: int, blocks: list[int]) -> torch.Tensor:
        """Compute the positions from `computed` on, in whole aligned chunks; returns the logits after the last."""
        hidden, start = torch.empty(0), 0
        for start in range(computed // CHUNK * CHUNK, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            write = range(max(start, computed), start + len(chunk))
            hidden = self.model.forward(chunk + [0] * (CHUNK - len(chunk)), start, write, blocks, self.pages)
        return self.logits(hidden[len(tokens) - 1 - start])

    def step(self, tokens: list[int], blocks: list[int]) -> torch.Tensor:
        """The logits after the last token, the only one that is not computed yet.

        A GPU may round a single row differently from time to time; so there the row is computed within its chunk.
        """
        at = len(tokens) - 1
        if self.device.type == "cuda":
            return self.prefill(tokens, at, blocks)
        return self.logits(self.model.forward(tokens[at:], at, range(at, at + 1), blocks, self.pages)[0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens of the vocabulary, in float32."""
        return (self.model.head @ hidden).float()

    def close(self) -> None:
        """Leave the market; all offers of this engine are dead from here on."""
        self.market.close()


def main() -> None:
    """Run two engines in this process, with a market of their own."""
    parser = argparse.ArgumentParser(description="two small engines; the second imports the first one's prefix")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    options = parser.parse_args()
    prompt = torch.randint(
        SMALL.vocabulary, (options.prompt_tokens,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    with tempfile.TemporaryDirectory() as directory:
        first, second = (MiniEngine(options.device, address=f"{directory}/market") for _ in range(2))
        one = first.generate(prompt, 16)
        time.sleep(0.2)  # offers become visible by themselves, a moment later
        two = second.generate(prompt, 16)
        for name, result in (("first", one), ("second", two)):
            took = f"{result.prefill_seconds * 1e3:.0f} ms to the next"
            sys.stdout.write(f"{name}: {result.imported_tokens} tokens imported, {took}\n")
        sys.stdout.write("outputs identical\n" if one.tokens == two.tokens else "OUTPUTS DIFFER\n")
        second.close()
        first.close()


if __name__ == "__main__":
    main()
