"""What the scheduler side knows of each request: its pages, and under which tenant its blocks may be shared.

Whatever a request brings, it is that request's matter: one that cannot be shared is refused, and nothing raises here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvmarket import counters
from kvmarket.registry.protocol.messages import MAX_TOKENS
from kvmarket.registry.trie.tokens import Int32s, as_tokens

LONGEST_TENANT = 4096  # bytes: messages of the market have room for so many characters

NO_TOKENS = "token ids that are no integers of 0 <= id < 2**31"
TOO_MANY_TOKENS = "more tokens than a message of the market holds"
UNREADABLE = "a request without the fields that this version of kvmarket knows"
NO_TEXT = "cache_salt is no text"
TOO_LONG = f"tenant and cache_salt have more than {LONGEST_TENANT} bytes"
NO_UNICODE = "tenant or cache_salt is no valid Unicode"


@dataclass(slots=True)
class RequestState:
    """One request. `slots` are all its pages in order; `known` of them are not news to us any more.

    `refusal`: why none of its blocks may be shared. `imported`: it has had its import, or wants none. `open`: its first
    block that is not sure yet, where it speculates (see drafts.py). `hit` of them its own engine's prefix cache had
    when it was last looked up; 0 when that has been counted.
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
    _counted: str = ""  # why it was not looked up, as far as that was counted

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

        None of a request that is refused; it is refused now if they are no tokens. Costs some 10 ns for each token that
        was not asked for before, and for all of the prompt the first time.
        """
        have, prompt = len(self._tokens), self.request.prompt_token_ids
        if count > MAX_TOKENS:
            self.refusal = self.refusal or TOO_MANY_TOKENS
        if self.refusal:
            return self._tokens[:0]
        try:
            if not have and prompt is not None and count <= len(prompt):
                self._add(as_tokens(prompt))  # a part of the list would be a copy first
            elif have < count:
                self._add(as_tokens(self.request.all_token_ids[have:count]))
        except (TypeError, ValueError):
            self.refusal = NO_TOKENS
            return self._tokens[:0]
        return self._tokens[:count]

    def refused(self, reason: str) -> None:
        """Count, once for each reason in turn, that the market is not asked about the request."""
        if reason != self._counted:
            self._counted = reason
            counters.add("vllm_import_refused", reason=reason)

    def _add(self, new: Int32s) -> None:
        """Take further tokens. Raises ValueError for negative ones, which stand for something else than a token."""
        if new.size and int(new.min()) < 0:
            raise ValueError(f"token {int(new.min())}")
        self._tokens = np.concatenate([self._tokens, new]) if len(self._tokens) else new


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


def tenant_refusal(base: str, salt: Any) -> str:
    """Why no message can name the tenant of an engine's own `base` and a request's ``cache_salt``; empty if one can."""
    if not isinstance(salt, str | None):
        return NO_TEXT
    tenant = tenant_of(base, salt)
    try:
        fits = len(tenant) <= LONGEST_TENANT and len(tenant.encode()) <= LONGEST_TENANT
    except UnicodeEncodeError:
        return NO_UNICODE
    return "" if fits else TOO_LONG


def state_of(request: Any, base_tenant: str) -> RequestState:
    """Start to follow a request."""
    try:
        refusal = refusal_of(request) or tenant_refusal(base_tenant, request.cache_salt)
        skips, _ = bool(request.skip_reading_prefix_cache), request.num_tokens - len(request.all_token_ids)
    except (AttributeError, TypeError, ValueError):  # ValueError: of an array that is asked whether it is true
        return RequestState(request, "", UNREADABLE)
    tenant = "" if refusal else tenant_of(base_tenant, request.cache_salt)
    return RequestState(request, tenant, refusal, imported=skips)
