"""The line that an engine logs when it joins: what is on, and why the rest is off; or why the hook is off."""

from __future__ import annotations

import logging
from typing import NamedTuple

from kvmarket import counters
from vllm_hook.engine import compat

_log = logging.getLogger("vllm.kvmarket")


class Summary(NamedTuple):
    """The parts of the line: `ways` says how a worker fetches, `peers` how many other engines are known so far."""

    place: str  # the address of the market, and the space
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
    """Log that the engine has joined the market, and what is on."""
    _log.info("kvmarket is on: vLLM %s; %s", compat.tested_version(), what)


def off(reason: str) -> None:
    """Log and count that the engine takes no part, and why."""
    counters.add("vllm_hook_off", reason=reason)
    _log.warning("kvmarket is off: %s (vLLM %s)", reason, compat.tested_version())


def off_for_now(reason: str) -> None:
    """Log why the engine has not joined the market yet; the line ends with the reason, which says what to do."""
    _log.warning(
        "kvmarket is off for now: it could not join the market; the engine serves without it, and goes on trying: %s",
        reason,
    )
