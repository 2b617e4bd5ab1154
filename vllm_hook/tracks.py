"""What the scheduler side knows of each request: its pages, and under which tenant its blocks may be shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvmarket.registry.tokens import Int32s, as_tokens


@dataclass(slots=True)
class Track:
    """One request. `slots` are all its pages in order; `known` of them are not news to us any more.

    `open`: its first block that is not sure yet, where it speculates (see drafts.py).
    `hit` of them its own engine's prefix cache had when it was last looked up; 0 when that has been counted.
    """

    request: Any
    tenant: str
    refusal: str = ""
    imported: bool = False
    known: int = 0
    open: int | None = None
    hit: int = 0
    slots: list[int] = field(default_factory=list)
    _tokens: Int32s = field(default_factory=lambda: np.empty(0, np.int32))

    def restart(self, local: int) -> None:
        """The request will be given pages anew, the first `local` of them by a hit in the engine's own prefix cache."""
        self.known = self.hit = local
        self.open = None
        self.slots = []

    def whole(self, slots: Sequence[int]) -> list[int]:
        """Take the request's complete page list; returns those that were newly allocated since the last one."""
        fresh = list(slots[self.known :])
        self.slots = list(slots)
        self.known = len(self.slots)
        return fresh

    def more(self, slots: Sequence[int]) -> list[int]:
        """Take pages that were appended; returns them."""
        self.slots.extend(slots)
        self.known = len(self.slots)
        return list(slots)

    def tokens(self, count: int) -> Int32s:
        """The first `count` tokens of the request, or fewer when it has fewer; do not write to them.

        Costs some 10 ns for each token that was not asked for before, and for all of the prompt the first time.
        """
        have, prompt = len(self._tokens), self.request.prompt_token_ids
        if not have and prompt is not None and count <= len(prompt):
            self._tokens = as_tokens(prompt)  # a part of the list would be a copy first
        elif have < count:
            new = as_tokens(self.request.all_token_ids[have:count])
            self._tokens = np.concatenate([self._tokens, new]) if have else new
        return self._tokens[:count]


def tenant_of(base: str, salt: str | None) -> str:
    """The tenant of a request: the engine's own and the request's salt; different pairs never give one text."""
    return f"{len(base)}:{base}{salt or ''}"


def refusal_of(request: Any) -> str:
    """Why the blocks of a request depend on more than its tokens, or can change under us; empty when they do not."""
    if request.lora_request is not None:
        return "LoRA"
    if request.mm_features:
        return "multimodal"
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "prompt embeds"
    if getattr(request, "resumable", False):
        return "streaming input"
    return ""


def track_of(request: Any, base_tenant: str) -> Track:
    """Start to track a request."""
    return Track(request, tenant_of(base_tenant, request.cache_salt), refusal_of(request))
