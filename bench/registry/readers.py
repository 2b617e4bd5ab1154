"""Engine processes for `bench.registry.scale`: readers, which offer nothing, and an owner of many branches."""

from __future__ import annotations

import time

import numpy as np

from bench.registry.joined import BLOCK, Connection, join_as_scheduler, prompt
from bench.registry.trie import resident
from kvmarket import counters

HEAD, STEP, PROMPT = 1024, 0.005, 512  # blocks of the long prompt; seconds; blocks of other prompts
GIVE_UP = 300.0


class Reader:
    """An engine that offers nothing. It runs its methods on request over the pipe and sends their results."""

    def __init__(self, pipe: Connection, address: str) -> None:
        start = time.monotonic()
        self.control, self.pipe = join_as_scheduler(address, 8), pipe
        self.before = resident()
        pipe.send(time.monotonic() - start)
        while (request := pipe.recv()) is not None:
            pipe.send(getattr(self, request[0])(*request[1:]))
        self.control.close()

    def know(self, blocks: int) -> float:
        """The moment when this engine's replica had `blocks` blocks, or GIVE_UP s had passed."""
        space, end = self.control._client._replica.space, time.monotonic() + GIVE_UP
        while space.blocks < blocks and time.monotonic() < end:
            time.sleep(0.01)
        return time.monotonic()

    def told(self, lost: int) -> tuple[float, list[float]]:
        """Step until `lost` services were lost and the next one sent all offers: that moment, and each step's us."""
        client, end, head, waits = self.control._client, time.monotonic() + GIVE_UP, prompt(HEAD, 0), []
        while time.monotonic() < end:
            losses = sum(n for name, n in counters.snapshot().items() if name.startswith("service_lost"))
            if losses >= lost and client._replica.whole:
                pools = [pool for name, pool in client._replica.space.pools.items() if name != self.control.pool.id]
                if not client._replica.pending and not any(pool.telling for pool in pools):
                    break
            start = time.perf_counter_ns()
            self.control.match(head)
            waits.append((time.perf_counter_ns() - start) / 1e3)
            time.sleep(STEP)
        return time.monotonic(), waits

    def memory(self) -> int:
        """Resident memory of this process, in bytes."""
        return resident()

    def match(self, seeds: list[tuple[int, ...]]) -> list[float]:
        """The microseconds of a match of each of these prompts; all of its blocks must be found."""
        prompts, spent = [prompt(PROMPT, *seed) for seed in seeds], []
        for tokens in prompts:
            start = time.perf_counter_ns()
            hit = self.control.match(tokens)
            spent.append((time.perf_counter_ns() - start) / 1e3)
            assert hit.blocks == PROMPT, f"{hit.blocks} of {PROMPT} blocks"
        return spent


def branch_owner(pipe: Connection, address: str, branches: int) -> None:
    """The engine with the branches: it offers them, then steps, and sends each step's us, or its memory, on request."""
    control, head = join_as_scheduler(address, HEAD + branches + 1), prompt(HEAD, 0)
    control.offer(head, range(HEAD), control.generations(range(HEAD)))
    for branch in range(branches):
        tokens, slot = np.concatenate([head, np.full(BLOCK, branch, np.int32)]), [HEAD + branch]
        control.offer(tokens, slot, control.generations(slot), first=HEAD)
        if branch % 200 == 0:
            time.sleep(0.002)
    pipe.send("ready")
    spare, waits = [HEAD + branches], []
    while True:
        if pipe.poll():
            message = pipe.recv()
            if message is None:
                break
            if message == "waits":
                pipe.send(waits)
                waits = []
            elif message == "memory":
                pipe.send(resident())
        start = time.perf_counter_ns()
        control.retire(spare)
        control.take_gone()
        control.match(head)
        waits.append((time.perf_counter_ns() - start) / 1e3)
        time.sleep(STEP)
    control.close()
