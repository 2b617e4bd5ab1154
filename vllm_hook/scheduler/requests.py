"""Request state on the scheduler side: a request's pages, tokens and tenant.

A request whose blocks cannot be shared gets a `refusal`; nothing here raises for what is in a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvmarket import counters
from kvmarket.registry.protocol.messages import MAX_TOKENS
from kvmarket.registry.trie.tokens import Int32s, as_tokens

LONGEST_TENANT = 4096  # bytes, and the most characters in a message of the market

NO_TOKENS = "token ids that are no integers of 0 <= id < 2**31"
TOO_MANY_TOKENS = "more tokens than a message of the market holds"
UNREADABLE = "a request without the fields that this version of kvmarket knows"
NO_TEXT = "cache_salt is no text"
TOO_LONG = f"tenant and cache_salt have more than {LONGEST_TENANT} bytes"
NO_UNICODE = "tenant or cache_salt is no valid Unicode"


@dataclass(slots=True)
class RequestState:
    """One request. `slots` are all its pages in order; the first `known` of them were seen before.

    `refusal`: why none of its blocks may be shared, or empty. `imported`: it has had its one import, or wants none.
    `open`: its first block that is not final, with speculative decoding (see drafts.py). `hit`: how many blocks the
    engine's own prefix cache had at the last lookup; 0 once they are counted.
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
    _counted: str = ""  # the reason that `refused` counted last

    def restart(self, local: int) -> None:
        """Forget the pages: new ones follow, the first `local` from a hit in the engine's own prefix cache."""
        self.known = self.hit = local
        self.open = None
        self.slots = []

    def whole(self, slots: Sequence[int]) -> list[int]:
        """Take the complete list of the request's pages; returns those that were allocated since the last list."""
        fresh = list(slots[self.known :])
        self.slots = list(slots)
        self.known = len(self.slots)
        return fresh

    def more(self, slots: Sequence[int]) -> list[int]:
        """Append further pages; returns them as a list."""
        self.slots.extend(slots)
        self.known = len(self.slots)
        return list(slots)

    def tokens(self, count: int) -> Int32s:
        """The first `count` tokens of the request, int32, or fewer when it has fewer; do not write to the array.

        An empty array for a refused request; ids that are no tokens, or too many, make it refused. Costs some 10 ns for
        each token that was not asked for before; the first call converts the whole prompt.
        """
        have, prompt = len(self._tokens), self.request.prompt_token_ids
        if count > MAX_TOKENS:
            self.refusal = self.refusal or TOO_MANY_TOKENS
        if self.refusal:
            return self._tokens[:0]
        try:
            if not have and prompt is not None and count <= len(prompt):
                self._add(as_tokens(prompt))  # a slice of the list would be a copy
            elif have < count:
                self._add(as_tokens(self.request.all_token_ids[have:count]))
        except (TypeError, ValueError):
            self.refusal = NO_TOKENS
            return self._tokens[:0]
        return self._tokens[:count]

    def refused(self, reason: str) -> None:
        """Count that the market is not asked about the request; a reason repeated in a row is counted once."""
        if reason != self._counted:
            self._counted = reason
            counters.add("vllm_import_refused", reason=reason)

    def _add(self, new: Int32s) -> None:
        """Append tokens. Raises ValueError for negative ids, which are placeholders and no tokens."""
        if new.size and int(new.min()) < 0:
            raise ValueError(f"token {int(new.min())}")
        self._tokens = np.concatenate([self._tokens, new]) if len(self._tokens) else new


def tenant_of(base: str, salt: str | None) -> str:
    """The tenant of a request: the engine's tenant and the request's salt. Different pairs give different texts."""
    return f"{len(base)}:{base}{salt or ''}"


def refusal_of(request: Any) -> str:
    """Why the blocks of a request depend on more than its tokens, or on tokens that may change; else empty."""
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
    """Why the tenant of an engine's `base` and a request's ``cache_salt`` fits no message; empty if it fits."""
    if not isinstance(salt, str | None):
        return NO_TEXT
    tenant = tenant_of(base, salt)
    try:
        fits = len(tenant) <= LONGEST_TENANT and len(tenant.encode()) <= LONGEST_TENANT
    except UnicodeEncodeError:
        return NO_UNICODE
    return "" if fits else TOO_LONG


def state_of(request: Any, base_tenant: str) -> RequestState:
    """Make the state of a new request, refused if it cannot be shared."""
    try:
        refusal = refusal_of(request) or tenant_refusal(base_tenant, request.cache_salt)
        skips, _ = bool(request.skip_reading_prefix_cache), request.num_tokens - len(request.all_token_ids)
    except (AttributeError, TypeError, ValueError):  # ValueError: the truth value of an array
        return RequestState(request, "", UNREADABLE)
    tenant = "" if refusal else tenant_of(base_tenant, request.cache_salt)
    return RequestState(request, tenant, refusal, imported=skips)
