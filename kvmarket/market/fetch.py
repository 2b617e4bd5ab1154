"""A fetch under way: whether it is done, and how many of its leading blocks are valid."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvmarket import counters
from kvmarket.errors import ClosedError
from kvmarket.kernels import checksum
from kvmarket.market.offer import Offers
from kvmarket.pool import GenerationReader
from kvmarket.pool.landings import Landing
from kvmarket.support.flags import Flags, leading
from kvmarket.ways import FAILURES, Int64s, Started


class Piece(NamedTuple):
    """Consecutive blocks of a fetch out of one pool: what their offers said, and where their generations are."""

    generations: GenerationReader
    offers: Offers

    def standing(self) -> Flags:
        """Which offers still stand. After the copy completed this says which bytes count."""
        return self.generations.valid(self.offers.epoch, self.offers.slots, self.offers.generations)

    def valid(self, sums: Int64s | None) -> Flags:
        """Which bytes count, by the `sums` of the completed copy where it has some. What does not is counted."""
        standing = self.standing()
        if stale := len(standing) - int(np.count_nonzero(standing)):
            counters.add("fetch_stale", stale, reason="a block was retired while it was being fetched")
        if sums is None or self.offers.checksums is None:
            return standing
        found, expected = checksum.finish(sums), self.offers.checksums
        if found.tobytes() == expected.tobytes():  # nearly always so, and sooner seen than block by block
            return standing
        sound = standing & checksum.agree(found, expected)
        if corrupt := len(sound) - stale - int(np.count_nonzero(sound)):
            reason = "bytes that arrived do not have the checksum of their offer: look for faulty memory or links"
            counters.add("fetch_corrupt", corrupt, reason=reason)
        return sound


class Fetch:
    """Handle of one fetch. It keeps alive what the copy reads; let go of it only when it is done.

    A block does not count any more once its slot was retired, or given to another fetch: ask for it before that.
    In a fork of its process, one that was not done raises ClosedError.

    `begun`: by `time.perf_counter`, when fetch was called. `seconds`: from then until it was seen to be done; 0 before
    that, and where nothing was launched.
    """

    seconds = 0.0

    def __init__(
        self,
        asked: int,
        pieces: Sequence[Piece],
        started: Started | None,
        block_bytes: int = 0,
        begun: float = 0.0,
        landing: Landing | None = None,
    ) -> None:
        """Of a fetch of `asked` blocks, those of `pieces` were `started`; None where the launch failed.

        `block_bytes`: of one block. `landing`: where they go, if it is to be known what becomes of these slots.
        """
        self._block_bytes, self.begun = block_bytes, begun
        self._asked, self._pieces = asked, pieces
        self._started, self._landing = started, landing
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._valid: Flags | None = None
        if started is None:
            self._end(np.zeros(asked, np.bool_))

    def done(self) -> bool:
        """Whether the copy has completed; never waits. Once true, `wait` returns at once. Costs some us."""
        started = self._under_way()
        if started is not None and _over(started):
            self._settle(started)
        return self._valid is not None

    def wait(self) -> int:
        """Wait for the copy; how many leading blocks are valid. The others' slots hold no meaningful bytes.

        Prefill those blocks.
        """
        started = self._under_way()
        if started is not None:
            self._settle(started)
        return leading(self.valid)

    @property
    def valid(self) -> Flags:
        """For each block asked for, whether it is valid. Empty until done."""
        if self._valid is None:
            return np.empty(0, np.bool_)
        return self._valid if self._landing is None else self._valid & self._landing.intact()

    def _under_way(self) -> Started | None:
        started = self._started
        if started is not None and self._pid != os.getpid():
            raise ClosedError(f"this fetch is one of process {self._pid}, which forked; connect in this process")
        return started

    def _settle(self, started: Started) -> None:
        """The copy has completed (or is waited for): only now do generations say which bytes count. Done once."""
        with self._turn:
            if self._started is not None:
                self._conclude(started)

    def _conclude(self, started: Started) -> None:
        parts = []
        try:
            sums = started.finish()
        except FAILURES as error:
            counters.add("fetch_failed", reason=f"the copy failed: {type(error).__name__}", detail=error)
        else:
            parts = [piece.valid(sums) for piece, sums in zip(self._pieces, sums, strict=True)]
        valid = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.bool_), *parts])
        if len(valid) < self._asked:
            valid = np.concatenate([valid, np.zeros(self._asked - len(valid), np.bool_)])
        self.seconds = time.perf_counter() - self.begun
        self._end(valid)
        self._pieces, self._started = (), None
        count = leading(valid)
        counters.add("blocks_fetched", count)
        counters.add("bytes_fetched", count * self._block_bytes)

    def _end(self, valid: Flags) -> None:
        """Nothing will land any more: first see to the slots of blocks that did not come, then let it be known."""
        if self._landing is not None:
            self._landing.end(valid)
        self._valid = valid


def _over(started: Started) -> bool:
    try:
        return started.query()
    except RuntimeError:  # an error of the device: `finish` raises it again, and it is counted there
        return True
