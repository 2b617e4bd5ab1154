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
    """Consecutive blocks of a fetch from one pool: its generations' reader, the offers, whether it is a lender's."""

    generations: GenerationReader
    offers: Offers
    lent: bool = False

    def standing(self) -> Flags:
        """For each block, whether its slot still has the offer's generation, and the pool the offer's epoch.

        Only an answer after the copy says that the copied bytes are the offered ones.
        """
        return self.generations.valid(self.offers.epoch, self.offers.slots, self.offers.generations)

    def valid(self, sums: Int64s | None) -> Flags:
        """For each block, whether its bytes are valid: the offer still is, and the checksum agrees if both have one.

        `sums`: of the completed copy, (blocks,) int64, or None. Invalid blocks are counted.
        """
        standing = self.standing()
        if stale := len(standing) - int(np.count_nonzero(standing)):
            counters.add("fetch_stale", stale, reason="a block was retired while it was being fetched")
        if sums is None or self.offers.checksums is None:
            return standing
        found, expected = checksum.finish(sums), self.offers.checksums
        if found.tobytes() == expected.tobytes():  # nearly always so, and faster than comparing block by block
            return standing
        sound = standing & checksum.agree(found, expected)
        if corrupt := len(sound) - stale - int(np.count_nonzero(sound)):
            reason = "bytes that arrived do not have the checksum of their offer: look for faulty memory or links"
            counters.add("fetch_corrupt", corrupt, reason=reason)
        return sound


class Fetch:
    """Handle of one fetch. Thread-safe. The data half keeps the memory alive, also if you drop the handle.

    A block does not count as valid any more once its destination slot, in your own cache, is retired or used for
    another fetch: call `wait` before that. In a fork of the process, `done` and `wait` raise ClosedError if the fetch
    was under way.

    `begun`: when fetch was called, by `time.perf_counter`. `seconds`: from then until `done` or `wait` saw the end; 0
    before that, and if the launch failed.
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
        """A fetch of `asked` blocks, of which those in `pieces` are being copied.

        `started`: the copies; None if the launch failed. `block_bytes`: bytes of one block. `landing`: is told the
        outcome for each slot, if given.
        """
        self._block_bytes, self.begun = block_bytes, begun
        self._asked, self._pieces = asked, pieces
        self._started, self._landing = started, landing
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._valid: Flags | None = None
        if started is None:
            self._end(np.zeros(asked, np.bool_))

    def done(self) -> bool:
        """Whether the copy has completed; does not wait for it. Once true, `wait` returns at once.

        Costs a few us. The call that sees the end also checks the blocks; if some did not arrive, that costs about
        50 us more on a GPU.
        """
        started = self._under_way()
        if started is not None and _over(started):
            self._settle(started)
        return self._valid is not None

    def wait(self) -> int:
        """Wait for the copy; return how many leading blocks are valid.

        Prefill all later blocks. Some of them may have arrived all the same: `valid` says which.
        """
        started = self._under_way()
        if started is not None:
            self._settle(started)
        return leading(self.valid)

    @property
    def valid(self) -> Flags:
        """For each requested block, whether it is valid now.

        Empty until `done` or `wait` saw the end. If the launch failed, all False from the start.
        """
        if self._valid is None:
            return np.empty(0, np.bool_)
        return self._valid if self._landing is None else self._valid & self._landing.intact()

    def _under_way(self) -> Started | None:
        started = self._started
        if started is not None and self._pid != os.getpid():
            raise ClosedError(f"this fetch is one of process {self._pid}, which forked; connect in this process")
        return started

    def _settle(self, started: Started) -> None:
        """Wait for the copy if it is not done, then find out, once, which blocks are valid."""
        with self._lock:
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
        pieces, self._pieces, self._started = self._pieces, (), None
        count = leading(valid)
        counters.add("blocks_fetched", count)
        if any(piece.lent for piece in pieces):
            lent = np.concatenate([np.full(len(piece.offers), piece.lent) for piece in pieces])
            counters.add("blocks_fetched_from_lenders", int(np.count_nonzero(lent[:count])))
        counters.add("bytes_fetched", count * self._block_bytes)

    def _end(self, valid: Flags) -> None:
        """Note the outcome. First tells the landing, so that slots without a block are marked before others see it."""
        if self._landing is not None:
            self._landing.end(valid)
        self._valid = valid


def _over(started: Started) -> bool:
    try:
        return started.query()
    except RuntimeError:  # an error of the device: `finish` raises it again, and it is counted there
        return True
