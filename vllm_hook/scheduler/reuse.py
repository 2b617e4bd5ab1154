"""The pages that are about to be overwritten: those that requests were given, and those that vLLM's pool reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmarket.market.control import ControlHalf
from kvmarket.pool import Slots, as_slots
from vllm_hook.engine import compat
from vllm_hook.scheduler.deferred import DeferredWork


class Reuse:
    """Retires pages before they are overwritten. All on the scheduling thread."""

    def __init__(self, deferred: DeferredWork) -> None:
        """What can be done later goes to `deferred`."""
        self._deferred = deferred
        self._reused: list[int] = []  # pages that vLLM's pool handed out since the last retirement
        self.pool: Any = None  # vLLM's block pool, once it is known

    def watch(self, slots: Sequence[int]) -> None:
        """Ask vLLM's pool, where it can, to say when it hands these pages out again."""
        if self.pool is not None:
            compat.watch_reuse(self.pool, slots, self._on_reuse)

    def retire(self, control: ControlHalf, slots: Sequence[int] | Slots) -> None:
        """Raise the generations of these pages and of those the pool reported: nothing has overwritten them yet.

        Their offers are dead at once and taken down with the deferred, which come before any further offer.
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
