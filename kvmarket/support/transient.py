"""Transient failures: the system was out of descriptors, memory, mappings or threads for a moment."""

from __future__ import annotations

import errno
import os

MORE = "raise the limit of open files (ulimit -n) or free some memory"
ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ENOSPC)
_TEXTS = (
    "out of memory",
    "mapping of buffer object failed",  # CUDA, where it has no room for one more mapping
    "can't start new thread",
    *(os.strerror(number).lower() for number in ERRNOS),
)


def is_transient(error: BaseException) -> bool:
    """Whether the call that raised `error` may succeed when it is tried again.

    Decided by the errno or text of `error` and of its causes: torch raises a RuntimeError of which only the text tells.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in ERRNOS):
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause).lower() for text in _TEXTS):
            return True
        cause = cause.__cause__
    return False
