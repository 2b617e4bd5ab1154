"""One of an engine's own pools: what describes it, the generations that it alone writes, and what it has on offer."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import msgspec

from kvmarket.errors import SlotError
from kvmarket.fact_texts import MOST_FACTS, fact
from kvmarket.fingerprint import Fingerprint
from kvmarket.market.ledger import Ledger
from kvmarket.market.offer import PoolDescriptor, Stage, check_stages, geometry_of
from kvmarket.pool import Generations, Slots
from kvmarket.pool.owners import release
from kvmarket.processes.shared_file import Process, SharedFile
from kvmarket.registry.protocol.messages import Join, PoolRecord
from kvmarket.registry.protocol.status import FINGERPRINT, KIND, NO_LABEL, RANKS, SHAPE, Label
from kvmarket.registry.space.snapshot import SnapshotParts


class OwnPool:
    """One of this engine's pools: its descriptor, the generations it alone writes, and what it has on offer."""

    def __init__(self, stages: Sequence[Stage], generations: Generations | None = None) -> None:
        """A new pool with a new id; its generations are new too unless they are given, shared with other markets.

        Raises LayoutError for stages that do not hold the same blocks.
        """
        check_stages(stages)  # before anything is made that would have to be closed
        self.generations = generations or Generations(stages[0].layout.slots)
        self._epoch = self.generations.epoch
        self.descriptor = PoolDescriptor(uuid.uuid4().hex, self.generations.file, tuple(stages))
        self.ledger = Ledger(self.record(), stages[0].layout.block_size)

    def catch_up(self) -> bool:
        """Empty the ledger where somebody has raised the epoch, which killed all that was in it; whether it was so."""
        if self.generations.epoch == self._epoch:
            return False
        self._epoch = self.generations.epoch
        self.ledger.clear()
        return True

    @property
    def epoch(self) -> int:
        """The epoch of what is in the ledger, as of the last `catch_up`: an offer of it carries this one."""
        return self._epoch

    def kill(self, slots: Slots | None = None) -> None:
        """Every offer of these slots is dead when this returns; without slots, every offer of the pool.

        The one place where a generation or an epoch is raised. Never waits, and may be called from any thread.
        """
        if slots is None:
            self.generations.raise_epoch()
        else:
            self.generations.raise_slots(slots)

    def close(self) -> None:
        """Every offer of this pool is dead when this returns; what others offer of the same memory is not."""
        if release(self.generations):
            self.generations.close()
        else:
            self.kill(self.ledger.slots())
        self.ledger.close()

    @property
    def id(self) -> str:
        """The pool's name, unique for ever."""
        return self.descriptor.pool

    def record(self) -> PoolRecord:
        """The pool as the registry sees it."""
        return PoolRecord(
            self.id, self.descriptor.slots, self.descriptor.processes, msgspec.msgpack.encode(self.descriptor)
        )


class OwnPools:
    """The pools of one engine: the one of its cache, and a staging pool if it has one. Not thread-safe."""

    def __init__(self, pool: OwnPool, staging: OwnPool | None) -> None:
        """Take them over."""
        self.pool, self.staging = pool, staging
        self._all = [pool, staging] if staging else [pool]
        self.ids = frozenset(each.id for each in self._all)

    def __iter__(self) -> Iterator[OwnPool]:
        """Each of them."""
        return iter(self._all)

    def of(self, staged: bool) -> OwnPool:
        """The pool of the cache, or the staging pool. Raises SlotError where there is none."""
        if not staged:
            return self.pool
        if self.staging is None:
            raise SlotError("this engine has no staging pool; give connect(..., staging_bytes=...)")
        return self.staging

    def joining(self, fingerprint: Fingerprint, stages: Sequence[Stage], label: Label = NO_LABEL) -> Join:
        """What the engine joins a market with. Engines of one space can exchange all blocks.

        A `label` without a model gets that of the fingerprint's facts, where one of them is called so.
        """
        kind = stages[0].ranks[0].kind
        ranks = "+".join(str(len(stage.ranks)) for stage in stages)
        geometry = geometry_of(stages)
        told = {FINGERPRINT: fingerprint.hex, KIND: kind, RANKS: ranks, SHAPE: geometry}
        model = label.model or next((each.text for each in fingerprint.facts if each.name == "model"), "")
        return Join(
            self.pool.descriptor.generations.owner,
            f"{fingerprint.hex}/{kind}/{ranks}",
            geometry,
            stages[0].layout.block_size,
            tuple(pool.record() for pool in self._all),
            (*(fact(name, text) for name, text in told.items()), *fingerprint.facts[:MOST_FACTS]),
            Label(model, label.port),
        )

    def memory(self, pool: str) -> tuple[Sequence[Process], Sequence[SharedFile]]:
        """The processes that one of them dies with, and its shared memory in the order of its description.

        Of any other pool none.
        """
        found = next((each.descriptor for each in self._all if each.id == pool), None)
        return (found.processes, found.files) if found is not None else ((), ())

    def snapshot(self) -> SnapshotParts:
        """All that is on offer."""
        return SnapshotParts([pool.ledger.noted() for pool in self._all])

    def collect(self) -> bool:
        """Give back some memory of what is on offer no longer; whether there was any. Costs up to some 0.3 ms."""
        for pool in self._all:
            if pool.ledger.collecting:
                pool.ledger.collect()
                return True
        return False

    def close(self) -> None:
        """Every offer of them is dead when this returns."""
        for pool in self._all:
            pool.close()
