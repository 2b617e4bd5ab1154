"""Which weights a rank computes with, and whether its engine's prefix cache holds blocks of one kind of weights only.

The worker names its weights in every step's output. So a step that computed with other weights offers nothing under
the old name, however the weights were changed, and whoever knew of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
import xxhash

from kvmarket.kernels.checksum import FIRST_KEY, KEY_STEP
from vllm_hook.changes import follow_loads
from vllm_hook.guard import Guard

Names: TypeAlias = tuple[tuple[int, str], ...]  # rank and name of its weights, by rank; without ranks as they started
CHUNK_WORDS = 1 << 22
_NO_NAME = "?"


class RankWeights:
    """The weights of one rank: `name` is empty while they are those of the start, else it says what they hold.

    Equal names mean equal bytes. Where they cannot be read, every change gives a name that nobody else ever has.
    """

    def __init__(self, checksum: Callable[[torch.nn.Module], str] | None = None) -> None:
        self._checksum = checksum or checksum_of
        self._start: str | None = None
        self._worker: Any = None  # whose weights may have changed since they were read
        self._name = ""

    def ready(self, worker: Any) -> None:
        """The worker has its model: hear of weights that are loaded into it, whoever does so."""
        with Guard("ready", self._unknown):
            follow_loads(worker.get_model(), self, worker)

    def changing(self, worker: Any) -> None:
        """To be called before anything that may change the weights of vLLM's worker.

        Reads all of them the first time, to know what they were at the start, and waits for that.
        """
        with Guard("changing", self._unknown):
            if self._start is None:
                self._start = self._checksum(worker.get_model())
            self._worker = worker

    def name(self) -> str:
        """The name as of now: to be asked before each step. Reads the weights where they may have changed."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            with Guard("name", self._unknown):
                now = self._checksum(worker.get_model())
                if now and now == self._start:
                    self._name = ""
                elif now:
                    self._name = now
                else:
                    self._unknown("hidden")
        return self._name

    def _unknown(self, _: str) -> None:
        """Take a name that nobody has, and nobody will."""
        self._start = self._start or ""
        self._name = f"{_NO_NAME}{uuid.uuid4().hex}"


def have_names(weights: Names) -> bool:
    """Whether other engines can have weights of these names."""
    return not any(name.startswith(_NO_NAME) for _, name in weights)


class CacheWeights:
    """Of which weights the blocks in the engine's own prefix cache are: fed by the scheduler, step by step."""

    def __init__(self) -> None:
        self._first = 1  # the first step whose blocks the cache may hold
        self._seen: set[Names] = set()

    def emptied(self, step: int) -> None:
        """The cache was emptied; the next step to be dispatched is `step`."""
        self._first = step
        self._seen.clear()

    def computed(self, step: int, weights: Names) -> None:
        """A step has come back that computed with these weights."""
        if step >= self._first:
            self._seen.add(weights)

    def only(self, weights: Names) -> bool:
        """Whether all that the cache may hold was computed with these weights, and a step has shown it."""
        return self._seen == {weights}


def checksum_of(model: torch.nn.Module) -> str:
    """128 bits over all parameters, buffers and derived tensors of a model: hexadecimal, empty if some are hidden.

    vLLM's CPU build packs the weights of linear layers where nobody sees them. Costs a read of all of them and 100 MB.
    """
    tensors = dict(_tensors(model))
    if any(name.endswith("weight") and tensor.numel() == 0 for name, tensor in tensors.items()):
        return ""
    names = sorted(tensors)
    sums = torch.stack([_sum(tensors[name]).cpu() for name in names]).tolist() if names else []
    shapes = [(name, str(tensors[name].dtype), tuple(tensors[name].shape)) for name in names]
    return xxhash.xxh3_128_hexdigest(repr((shapes, sums)).encode())


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors that a model computes with, by name; the KV cache is none of them."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and name != "kv_cache":
                yield f"{prefix}.{name} of the module", value


@torch.no_grad()
def _sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the tensor's 32-bit words that makes a checksum of a block: one int64, where the tensor lies."""
    data = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
    if rest := -data.numel() % 4:
        data = torch.cat([data, data.new_zeros(rest)])
    words = data.view(torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for at in range(0, len(words), CHUNK_WORDS):
        chunk = words[at : at + CHUNK_WORDS].to(torch.int64)
        keys = torch.arange(at, at + len(chunk), device=words.device, dtype=torch.int64) * KEY_STEP + FIRST_KEY
        total += (chunk * (keys & 0xFFFFFFFF)).sum()
    return total


def names_of(rank: int, name: str) -> Names:
    """What one rank says of its weights."""
    return ((rank, name),) if name else ()


def name_for(rank: int, weights: Names) -> str:
    """What the engine's scheduler believes of one rank's weights."""
    return dict(weights).get(rank, "")
