"""The one line that an engine logs when it starts: what is on, and why what is not on is not."""

from __future__ import annotations

from typing import NamedTuple


class Summary(NamedTuple):
    """What the line is made of: `ways` says how a worker fetches, `peers` counts the engines found at the start."""

    offers: bool
    imports: bool
    watched: bool
    ranks: int
    block_size: int
    ways: str
    peers: int

    def __str__(self) -> str:
        """One line, parts in a fixed order."""
        role = {(True, False): "kv_producer", (False, True): "kv_consumer"}.get((self.offers, self.imports), "kv_both")
        parts = [
            "offers on" if self.offers else f"offers off (kv_role is {role})",
            f"imports on, by {self.ways}" if self.imports else f"imports off (kv_role is {role})",
            "reuse of pages tracked and watched"
            if self.watched
            else "reuse of pages tracked, not watched (this vLLM's block pool does not tell of it, and none is missed)",
            f"{self.ranks} rank(s), {self.block_size} tokens a block",
            f"{self.peers} peer engine(s) found" if self.peers else "no peer engine yet",
        ]
        return "; ".join(parts)
