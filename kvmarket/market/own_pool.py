"""An engine's own pools: the descriptor of each, the generations that only this engine writes, and its live offers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import msgspec

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
    """One of this engine's pools: its descriptor, its generations, and the ledger of its live offers."""

    def __init__(
        self,
        stages: Sequence[Stage],
        generations: Generations | None = None,
        *,
        lent: bool = False,
        far: bool = False,
    ) -> None:
        """Make a pool with a new id. Its generations are new, or the given ones, which other markets may share.

        `lent`: whether it is a lender's. `far`: whether engines read it more slowly than one another's memory. Raises
        LayoutError for stages that do not hold the same blocks, and what `Generations` raises.
        """
        check_stages(stages)  # first, so that nothing has to be closed if it raises
        self.generations = generations or Generations(stages[0].layout.slots)
        self._epoch = self.generations.epoch
        self.descriptor = PoolDescriptor(uuid.uuid4().hex, self.generations.file, tuple(stages), lent, far)
        self.ledger = Ledger(self.record(), stages[0].layout.block_size)

    def catch_up(self) -> bool:
        """If the epoch was raised, which kills all offers in the ledger, empty the ledger; return whether it was."""
        if self.generations.epoch == self._epoch:
            return False
        self._epoch = self.generations.epoch
        self.ledger.clear()
        return True

    @property
    def epoch(self) -> int:
        """The epoch at the last `catch_up`, which all offers in the ledger carry."""
        return self._epoch

    def kill(self, slots: Slots | None = None) -> None:
        """Raise the generations of `slots`, or the pool's epoch for None: their offers are dead when this returns.

        Nothing else raises them, but for `Generations.close`. Never waits for other work. Thread-safe.
        """
        if slots is None:
            self.generations.raise_epoch()
        else:
            self.generations.raise_slots(slots)

    def close(self) -> None:
        """Make every offer of this pool dead, and free the ledger. Other markets' offers of the same memory stay."""
        if release(self.generations):
            self.generations.close()
        else:
            self.kill(self.ledger.slots())
        self.ledger.close()

    @property
    def id(self) -> str:
        """The pool's name, which is never used again."""
        return self.descriptor.pool

    def record(self) -> PoolRecord:
        """The pool as the registry knows it: the descriptor is encoded, and the registry does not decode it."""
        return PoolRecord(
            self.id,
            self.descriptor.slots,
            self.descriptor.processes,
            msgspec.msgpack.encode(self.descriptor),
            self.descriptor.lent,
            self.descriptor.far,
        )


class OwnPools:
    """The pools of one member of a market: of an engine that of its cache, and perhaps a staging pool."""

    def __init__(self, pools: Sequence[OwnPool]) -> None:
        """Take ownership of the pools, at least one; `close` closes them."""
        self._set(tuple(pools))

    def __iter__(self) -> Iterator[OwnPool]:
        """Iterate over the pools."""
        return iter(self._all)

    def add(self, pool: OwnPool) -> None:
        """Add a pool."""
        self._set((*self._all, pool))

    def remove(self, pool: OwnPool) -> None:
        """Remove a pool, which the caller closes."""
        self._set(tuple(each for each in self._all if each is not pool))

    def _set(self, pools: tuple[OwnPool, ...]) -> None:
        self._all = pools  # replaced, never changed: threads read it without a lock
        self.ids = frozenset(each.id for each in pools)

    def joining(self, fingerprint: Fingerprint, stages: Sequence[Stage], label: Label = NO_LABEL) -> Join:
        """The message by which the engine joins a market.

        Engines with the same `space` in it share within a tenant: their fingerprints, kinds of memory and ranks are
        equal. A `label` without a model gets the text of the fingerprint's fact "model", if there is one.
        """
        kind = stages[0].ranks[0].kind
        ranks = "+".join(str(len(stage.ranks)) for stage in stages)
        geometry = geometry_of(stages)
        told = {FINGERPRINT: fingerprint.hex, KIND: kind, RANKS: ranks, SHAPE: geometry}
        model = label.model or next((each.text for each in fingerprint.facts if each.name == "model"), "")
        return Join(
            self._all[0].descriptor.generations.owner,
            f"{fingerprint.hex}/{kind}/{ranks}",
            geometry,
            stages[0].layout.block_size,
            tuple(pool.record() for pool in self._all),
            (*(fact(name, text) for name, text in told.items()), *fingerprint.facts[:MOST_FACTS]),
            Label(model, label.port),
        )

    def memory(self, pool: str) -> tuple[Sequence[Process], Sequence[SharedFile]]:
        """The processes and shared files of the pool with id `pool`, in the order of its descriptor.

        Empty for a pool that is not one of these.
        """
        found = next((each.descriptor for each in self._all if each.id == pool), None)
        return (found.processes, found.files) if found is not None else ((), ())

    def snapshot(self) -> SnapshotParts:
        """All live offers of the pools, in parts."""
        return SnapshotParts([pool.ledger.noted() for pool in self._all])

    def collect(self) -> bool:
        """Free some memory of forgotten offers; return whether there was any. Costs up to about 0.3 ms."""
        for pool in self._all:
            if pool.ledger.collecting:
                pool.ledger.collect()
                return True
        return False

    def close(self) -> None:
        """Close every pool: all their offers are dead when this returns."""
        for pool in self._all:
            pool.close()
