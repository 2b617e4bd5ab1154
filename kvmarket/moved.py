"""A fetch under way: whether it is done, and how many of its leading blocks are valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kvmarket import counters
from kvmarket.pool import GenerationReader


class Piece(msgspec.Struct, frozen=True):
    """Consecutive blocks of a fetch out of one pool: where their generations are, and what the offers said."""

    generations: GenerationReader
    epoch: int
    slots: tuple[int, ...]
    expected: tuple[int, ...]

    def valid(self) -> list[bool]:
        """Which blocks still have the epoch and the generation of their offers. Call it after the copy completed."""
        return self.generations.valid(self.epoch, self.slots, self.expected)


class Moved:
    """Handle of one fetch. It keeps alive what the copy reads; let go of it only when it is done."""

    def __init__(
        self, asked: int, pieces: Sequence[Piece], query: Callable[[], bool], finish: Callable[[], Any], keep: object
    ) -> None:
        """`query` polls the copy, `finish` waits for it and may raise RuntimeError when it failed."""
        self._asked, self._pieces, self._query, self._finish = asked, pieces, query, finish
        self._keep: object = keep
        self._valid: list[bool] | None = None

    def done(self) -> bool:
        """Whether the copy has completed; never waits. Once true, `wait` returns at once. Costs some us."""
        if self._valid is None and self._completed():
            self._settle()
        return self._valid is not None

    def _completed(self) -> bool:
        try:
            return self._query()
        except RuntimeError:  # `finish` raises it again, and it is counted there
            return True

    def wait(self) -> int:
        """Wait for the copy; how many leading blocks are valid. The others' slots hold no meaningful bytes.

        Prefill those blocks.
        """
        if self._valid is None:
            self._settle()
        return self.valid.index(False) if False in self.valid else len(self.valid)

    @property
    def valid(self) -> list[bool]:
        """For each block asked for, whether it is valid. Empty until done."""
        return self._valid or []

    def _settle(self) -> None:
        """The copy has completed (or is waited for): only now do generations say which bytes count."""
        try:
            self._finish()
        except RuntimeError as error:
            counters.add("fetch_failed", reason=f"the copy failed: {error}")
            valid = [False] * self._asked
        else:
            valid = [one for piece in self._pieces for one in piece.valid()]
            stale = valid.count(False)
            if stale:
                counters.add("fetch_stale", stale, reason="a block was retired while it was being fetched")
            valid += [False] * (self._asked - len(valid))
        counters.add("blocks_fetched", valid.index(False) if False in valid else len(valid))
        self._keep = None
        self._valid = valid
