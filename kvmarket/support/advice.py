"""Advice for each error of the operating system: the end of an error message about an address."""

from __future__ import annotations

import errno

_ADVICE = {
    errno.EACCES: "give an address in a directory of your own",
    errno.EPERM: "give an address in a directory of your own",
    errno.EROFS: "give an address on a file system that can be written to",
    errno.ENOSPC: "make room there, or give another address",
    errno.EDQUOT: "make room there, or give another address",
    errno.ENAMETOOLONG: "give a shorter address",
    errno.ELOOP: "remove the links that lead to each other, or give another address",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "free memory, and try again",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
    errno.ENOLCK: "give an address on a local file system",
}


def explained(error: OSError) -> str:
    """The system's text for `error`, in parentheses, and what the user can do about it."""
    return f"({error.strerror or error}); {_ADVICE.get(error.errno or 0, 'give another address')}"
