"""Which failures may pass by themselves: no descriptor, no memory or no mapping was to be had for a moment."""

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
    """Whether what raised `error` may succeed when it is tried again: by its errno or text, or those of its causes.

    torch tells such failures by the text of a RuntimeError alone.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in ERRNOS):
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause).lower() for text in _TEXTS):
            return True
        cause = cause.__cause__
    return False
