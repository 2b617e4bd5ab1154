"""Fakes of vLLM's objects and of the control half, with the parts that the scheduler side uses."""

from __future__ import annotations

import threading
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from kvmarket.errors import KVMarketError
from kvmarket.market.offer import Hit
from kvmarket.registry.client.others import Others
from kvmarket.registry.protocol.address import Address
from kvmarket.registry.protocol.messages import Name
from kvmarket.registry.protocol.status import Label
from vllm_hook.metadata import Load, RankMemory, StepDone
from vllm_hook.scheduler.side import SchedulerSide

BLOCK = 4


def check_message(tokens: Any, tenant: str) -> None:
    """Raise what the real control half, or the service, raises for tokens or a tenant that fit no message."""
    assert tokens.dtype == np.int32 and not (tokens < 0).any()
    msgspec.msgpack.decode(msgspec.msgpack.encode(tenant), type=Name)


class FakeHome:
    """Where a control half has joined; it is left when `left` is set."""

    def __init__(self) -> None:
        self.place, self.label = "market /m, space s", Label("m", 8000)
        self.at = self.address = Address("/m")
        self.left = threading.Event()
        self.near: Others | KVMarketError = Others([], 0, [], "")

    def left_within(self, seconds: float) -> bool:
        return self.left.wait(seconds)

    def others(self) -> Others:
        if isinstance(self.near, KVMarketError):
            raise self.near
        return self.near


class FakeControl:
    """A control half with generations, an epoch and a log of its calls; offers die as those of the real one."""

    def __init__(self) -> None:
        self.generation: dict[int, int] = defaultdict(lambda: 1)
        self.epoch, self.home = 1, FakeHome()
        self.log: list[str] = []
        self.standing: dict[int, tuple[int, int, tuple[int, ...], str]] = {}  # slot: generation, epoch, tokens, tenant
        self.found = 0
        self.promises: dict[int, tuple[tuple[int, ...], str]] = {}
        self.coming = 0  # blocks that others are computing
        self.found_peers = 0
        self.gone: list[str] = []  # pools of peers
        self.far: list[Any] = []  # descriptors of pools
        self.broken: set[str] = set()
        self.closed = False

    def _call(self, name: str) -> None:
        self.log.append(name)
        if name in self.broken:
            raise RuntimeError(f"{name} is broken")

    def generations(self, slots: Any) -> list[int]:
        self._call("generations")
        return [self.generation[slot] for slot in slots]

    def offer(self, tokens: Any, slots: Any, generations: Any, *, tenant: str, first: int) -> int:
        self._call("offer")
        check_message(tokens, tenant)
        assert len(tokens) == (first + len(slots)) * BLOCK
        for i, (slot, generation) in enumerate(zip(slots, generations, strict=True)):
            if self.generation[slot] == generation:
                prefix = tuple(tokens[: (first + i + 1) * BLOCK])
                self.standing[slot] = (generation, self.epoch, prefix, tenant)
        return len(slots)

    def match(self, tokens: Any, *, tenant: str, first: int) -> Hit:
        self._call("match")
        check_message(tokens, tenant)
        blocks = max(0, min(self.found, len(tokens) // BLOCK) - first)
        return Hit(blocks * BLOCK, blocks, first, (), {})

    def retire(self, slots: Any, *, take_down: bool) -> None:
        assert len(set(slots)) == len(slots) and not take_down
        self._call("retire")
        for slot in slots:
            self.generation[slot] += 1

    def take_down(self, slots: Any) -> None:
        self._call("take_down")
        for slot in slots:
            self.standing.pop(slot, None)  # whatever offer is there now: a late call is an error, too

    def fail_closed(self, reason: str) -> None:
        self.log.append("fail_closed")
        self.epoch += 1

    def promise(self, tokens: Any, *, tenant: str) -> int:
        self._call("promise")
        check_message(tokens, tenant)
        number = 1000 + len(self.log)
        self.promises[number] = (tuple(tokens), tenant)
        return number

    def settle(self, number: int) -> None:
        self._call("settle")
        del self.promises[number]

    def promised(self, tokens: Any, *, tenant: str) -> int:
        return self.coming

    def peers(self) -> int:
        return self.found_peers

    def avoid(self, pool: str) -> None:
        self._call(f"avoid {pool}")

    def met(self) -> tuple[str, ...]:
        return ("a peer's",)

    def take_gone(self) -> list[str]:
        gone, self.gone = self.gone, []
        return gone

    def take_far(self) -> list[Any]:
        far, self.far = self.far, []
        return far

    def close(self) -> None:
        self.closed = True
        self.home.left.set()
        self.epoch += 1

    def live(self) -> dict[int, tuple[int, ...]]:
        """The prefix by slot of every offer whose bytes a reader would accept."""
        return {
            slot: tokens
            for slot, (generation, epoch, tokens, _) in self.standing.items()
            if generation == self.generation[slot] and epoch == self.epoch
        }


class FakePool:
    """A block pool with reuse watchers, as of vLLM 0.30."""

    def __init__(self, size: int = 64) -> None:
        self.blocks = [SimpleNamespace(block_id=i, ref_cnt=1, is_null=i == 0) for i in range(size)]
        self._reuse_watchers: dict[int, Any] = {}
        self.resets = 0

    def touch(self, blocks: Any) -> None:
        for block in blocks:
            block.ref_cnt += 1

    def unpin_blocks(self, blocks: Any, on_reuse: Any) -> None:
        for block in blocks:
            block.ref_cnt -= 1
            self._reuse_watchers[block.block_id] = on_reuse

    def hand_out(self, slot: int) -> None:
        """Hand out one block as ``get_new_blocks`` does, with its reuse callback."""
        watcher = self._reuse_watchers.pop(slot, None)
        if watcher:
            watcher(self.blocks[slot])

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True


class FakeWorker:
    """A worker side on this thread; `whole` are the requests whose loads filled all pages."""

    def __init__(self) -> None:
        self.started: list[Load] = []
        self.whole: set[str] = set()

    def start_now(self, load: Load) -> None:
        self.started.append(load)

    def landed(self) -> set[str]:
        return set(self.whole)


def prefix(blocks: int) -> tuple[int, ...]:
    """The tokens of the first blocks of every `request`."""
    return tuple(range(blocks * BLOCK))


def request(name: str, tokens: int, **more: Any) -> Any:
    """A request of vLLM's scheduler with tokens 0, 1, 2, ..."""
    fields = {
        "request_id": name,
        "all_token_ids": list(range(tokens)),
        "prompt_token_ids": list(range(tokens)),
        "prompt_embeds": None,
        "num_tokens": tokens,
        "lora_request": None,
        "mm_features": [],
        "cache_salt": None,
        "skip_reading_prefix_cache": False,
        "resumable": False,
    }
    return SimpleNamespace(**{**fields, **more})


def step_of(
    new: dict[str, tuple[list[int], int, int]] | None = None,
    cached: dict[str, tuple[list[int] | None, int, int]] | None = None,
    resumed: set[str] | None = None,
) -> Any:
    """A ``SchedulerOutput``; by request its (new) pages, the tokens computed before, and the tokens scheduled now."""
    new, cached = new or {}, cached or {}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(pages,), num_computed_tokens=done)
            for name, (pages, done, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            resumed_req_ids=resumed or set(),
            new_block_ids=[None if pages is None else (pages,) for pages, _, _ in cached.values()],
            num_computed_tokens=[done for _, done, _ in cached.values()],
        ),
        num_scheduled_tokens={name: now for name, (_, _, now) in {**new, **cached}.items()},
    )


def back(step: int, finished: set[str] | None = None, invalid: set[int] | None = None, ranks: int = 1) -> Any:
    """The connector output of a returned step."""
    return SimpleNamespace(
        finished_recving=finished or set(),
        invalid_block_ids=invalid or set(),
        kv_connector_worker_meta=StepDone(step, ranks),
    )


def joined(
    pool: FakePool | None = None, ranks: int = 1, worker: Any = None, **more: Any
) -> tuple[SchedulerSide, FakeControl]:
    """A scheduler side that has joined the market, with its fake control half."""
    side, control = SchedulerSide(BLOCK, ranks, **more), FakeControl()
    if pool is not None:
        side.bind_pool(pool)
    memories = {rank: RankMemory(None, None, here=lambda: worker) for rank in range(ranks)}
    assert side.join(memories, lambda _: control) == ""  # type: ignore[arg-type, return-value]
    return side, control


def admit(side: SchedulerSide, one: Any, pages: list[int], local: int = 0) -> int:
    """Do what ``schedule()`` does for a waiting request: match, allocate. Returns the tokens to import."""
    external, _ = side.match(one, local)
    side.allocated(one, pages, external)
    return external
