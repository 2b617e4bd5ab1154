"""Retires pages that are about to be overwritten: requests' new pages, and pages that vLLM's block pool reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmarket.market.control import ControlHalf
from kvmarket.pool import Slots, as_slots
from vllm_hook.engine import compat
from vllm_hook.scheduler.deferred import DeferredWork


class Reuse:
    """Retires pages before they are overwritten. Call it on the scheduling thread only."""

    def __init__(self, deferred: DeferredWork) -> None:
        """Offers are taken down as `deferred` work."""
        self._deferred = deferred
        self._reused: list[int] = []  # pages that vLLM's pool handed out since the last retirement
        self.pool: Any = None  # vLLM's block pool, set once vLLM has made it

    def watch(self, slots: Sequence[int]) -> None:
        """Ask vLLM's block pool, where the version can, to report when it hands these pages out again."""
        if self.pool is not None:
            compat.watch_reuse(self.pool, slots, self._on_reuse)

    def retire(self, control: ControlHalf, slots: Sequence[int] | Slots) -> None:
        """Raise the generations of these pages and of those that the pool reported, before they are overwritten.

        Their offers are dead at once. They are taken down as deferred work, which runs before any new offer is made.
        """
        pages = slots
        if self._reused:
            pages = list(dict.fromkeys([*self._reused, *map(int, slots)]))
            self._reused.clear()
        if len(pages):
            gone = as_slots(pages)
            control.retire(gone, take_down=False)
            self._deferred.add(lambda: control.take_down(gone))

    def _on_reuse(self, block: Any) -> None:
        """Called by vLLM's pool within ``schedule()``; the retirement follows before the step is dispatched."""
        self._reused.append(block.block_id)
