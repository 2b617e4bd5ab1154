"""The one line that an engine logs when it starts: what is on, and why what is not on is not; or why all is off."""

from __future__ import annotations

import logging
from typing import NamedTuple

from kvmarket import counters
from vllm_hook.engine import compat

_log = logging.getLogger("vllm.kvmarket")


class Summary(NamedTuple):
    """What the line is made of: `ways` says how a worker fetches, `peers` counts the engines that are known by now."""

    place: str  # the market and the space
    peers: int
    offers: bool
    imports: bool
    watched: bool
    ranks: int
    block_size: int
    ways: str

    def __str__(self) -> str:
        """One line, parts in a fixed order."""
        role = {(True, False): "kv_producer", (False, True): "kv_consumer"}.get((self.offers, self.imports), "kv_both")
        parts = [
            self.place,
            "offers on" if self.offers else f"offers off (kv_role is {role})",
            f"imports on, by {self.ways}" if self.imports else f"imports off (kv_role is {role})",
            "reuse of pages tracked and watched"
            if self.watched
            else "reuse of pages tracked, not watched (this vLLM's block pool does not tell of it, and none is missed)",
            f"{self.ranks} rank(s), {self.block_size} tokens a block",
            f"{self.peers} peer engine(s) found" if self.peers else "no peer engine yet",
        ]
        return "; ".join(parts)


def on(what: str) -> None:
    """Say that the engine has joined the market, at its start or late, and what is on."""
    _log.info("kvmarket is on: vLLM %s; %s", compat.tested_version(), what)


def off(reason: str) -> None:
    """Say once that, and why, the engine takes no part."""
    counters.add("vllm_hook_off", reason=reason)
    _log.warning("kvmarket is off: %s (vLLM %s)", reason, compat.tested_version())


def off_for_now(reason: str) -> None:
    """Say why the engine has not joined the market yet; the line ends with the reason, which says what to do."""
    _log.warning(
        "kvmarket is off for now: it could not join the market; the engine serves without it, and goes on trying: %s",
        reason,
    )
