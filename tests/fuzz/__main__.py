"""``python -m tests.fuzz --runs 1000000``: sends damaged and made-up messages to the service and to a replica.

Every input that breaks a target is printed. guided.py does the same guided by coverage.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

import numpy as np

from kvmarket.processes.shared_file import Process
from kvmarket.registry.protocol.messages import (
    Before,
    Change,
    Changes,
    OfferBlocks,
    PoolGone,
    PoolJoined,
    PoolRecord,
    Promise,
    Retire,
    Settle,
    Snapshot,
    SnapshotEnd,
)
from tests.fuzz.targets import BLOCK, SLOTS, ReplicaTarget, ServiceTarget, body_of, check_offering, quiet


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with bytes changed, cut out, doubled, or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 1 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                del changed[at : at + chance.randrange(1, 9)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randrange(1, 9))
            case _:
                changed[at:at] = changed[at : at + chance.randrange(1, 33)]
    return bytes(changed)


def made_up(chance: random.Random) -> list[Change]:
    """Random changes that decode; their fields may or may not fit each other."""

    def words(count: int, most: int) -> bytes:
        extra = chance.randbytes(chance.randrange(1, 8)) if chance.random() < 0.02 else b""
        return b"".join(chance.randrange(most).to_bytes(8, "little") for _ in range(count)) + extra

    pool, blocks = chance.choice(("mine", "theirs", "new", "unknown")), chance.randrange(1, 5)
    most = SLOTS if chance.random() < 0.9 else 1 << chance.randrange(4, 64)
    slots = words(blocks if chance.random() < 0.95 else chance.randrange(6), most)
    if chance.random() < 0.8:
        slots = b"".join(slot.to_bytes(8, "little") for slot in chance.sample(range(SLOTS), blocks))
    first = chance.choice((0, 0, 0, 1, 2, 1 << 40))
    tokens = b"".join(chance.randrange(2).to_bytes(4, "little") for _ in range(BLOCK * (blocks + min(first, 2))))
    generations = words(blocks, 1 << chance.choice((1, 10, 63)))
    sums = words(blocks, 1 << 63) if chance.random() < 0.3 else b""
    tenant = chance.choice(("", "t", "\0"))
    before = Before(chance.randrange(SLOTS), 1, chance.choice((2, 5, 7))) if chance.random() < 0.4 else None
    if before is not None:
        first, tokens = chance.choice((1, 1, 2, 3)), tokens[: 4 * BLOCK * blocks]
    return [
        OfferBlocks(pool, tenant, tokens, first, slots, chance.choice((1, 1, 1, 2, 0)), generations, sums, before),
        Retire(pool, slots if chance.random() < 0.9 else None),
        Promise(pool, "", tokens, chance.randrange(4)),
        Settle(pool, chance.randrange(4)),
        SnapshotEnd((pool,)),
        _branches(pool, chance),
    ]


def _branches(pool: str, chance: random.Random) -> Snapshot:
    """Random branches whose parts mostly fit each other."""
    runs, offers, depth = [], [], 0
    for number in range(chance.randrange(1, 4)):
        keep, blocks = chance.randint(0, depth) if number else 0, chance.randrange(1, 3)
        mine = [[block, 0, chance.randrange(SLOTS), 1, chance.randrange(1, 9)] for block in range(blocks)]
        offers += mine
        runs.append([0, keep, blocks, len(mine)])
        depth = keep + blocks
    tokens = np.array([chance.randrange(2) for _ in range(BLOCK * sum(run[2] for run in runs))], np.int32)
    tables = [np.array(rows, np.int64) for rows in (runs, offers)]
    if chance.random() < 0.2:
        table = chance.choice(tables)
        table[chance.randrange(len(table)), chance.randrange(table.shape[1])] = chance.randrange(-1, 1 << 40)
    return Snapshot((chance.choice(("", "t")),), (pool,), tables[0].tobytes(), tokens.tobytes(), tables[1].tobytes())


def shoot(runs: int, seed: int) -> dict[str, int]:
    """Run all targets, `runs` times together, with damaged messages; returns how many each accepted and refused."""
    chance = random.Random(seed)
    service, replica = ServiceTarget(), ReplicaTarget()
    kinds: list[tuple[str, Callable[[bytes], bool], list[bytes]]] = [
        ("service", service.run, service.seeds()),
        ("service, stranger", lambda data: service.run(data, stranger=True), service.seeds()),
        ("replica", replica.run, replica.seeds()),
        ("offering", check_offering, [bytes(32 + 8 * n) for n in range(8)]),
    ]
    counts: dict[str, int] = {}
    last: tuple[str, bytes] | None = None
    try:
        for _ in range(runs):
            name, target, seeds = chance.choice(kinds)
            data = damaged(chance.choice(seeds), chance) if chance.random() < 0.4 else _packed(name, chance)
            last = name, data
            took = target(data)
            last = None
            key = f"{name}: {'taken' if took else 'refused'}"
            counts[key] = counts.get(key, 0) + 1
    finally:
        if last is not None:
            sys.stderr.write(f"{last[0]} broke on {last[1]!r}\n")
        service.close()
    return counts


def _packed(name: str, chance: random.Random) -> bytes:
    """A random message that decodes."""
    message: Change = chance.choice(made_up(chance))
    if name == "replica":
        about = PoolJoined(
            PoolRecord(chance.choice(("new", "theirs")), chance.choice((1, SLOTS)), (Process.current(),), b"x")
        )
        changes: list[Change] = [message, chance.choice([about, PoolGone(chance.choice(("new", "theirs")))])]
        chance.shuffle(changes)
        return body_of(Changes(1, tuple(changes), chance.random() < 0.2))
    return body_of(Changes(1, (message,), chance.random() < 0.1))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    quiet()
    start = time.monotonic()
    for key, count in sorted(shoot(options.runs, options.seed).items()):
        print(f"{key:30} {count:>10}")
    print(f"{options.runs} inputs in {time.monotonic() - start:.0f} s, none broke anything")


if __name__ == "__main__":
    main()
