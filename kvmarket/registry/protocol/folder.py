"""Whether the folder of a market is one that other containers, or other units of systemd, can have too."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kvmarket.processes.numbers import HOST
from kvmarket.processes.shared_file import pid_namespace

ADVICE = "engines elsewhere have another one: mount a folder that all of them share, and set KVMARKET_ADDRESS to it"
_MOUNTS = Path("/proc/self/mountinfo")
_LAYERED = ("overlay", "aufs", "fuse-overlayfs")  # file systems that containers have of their own
_OWN_TMPFS = (Path("/"), Path("/tmp"), Path("/var/tmp"), Path("/run"))  # where containers have one of their own


class Mount(NamedTuple):
    """Where a mount lies, which folder of its file system it shows, and the kind of that."""

    point: Path
    root: str
    kind: str


def whose(folder: Path) -> str:
    """Whose alone the folder is, as the end of a sentence; empty where others can have it too.

    Raises OSError where the mounts or the folder cannot be looked at. Costs some ms.
    """
    lines = _MOUNTS.read_text().splitlines()
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        folder.stat()  # raises OSError for links that lead to each other; what `resolve` does depends on the Python
    mount = _mount_of(folder.resolve(), lines)
    if "systemd-private" in mount.root:
        return "in the /tmp of this unit alone (PrivateTmp)"
    own = mount.kind in _LAYERED or (mount.kind == "tmpfs" and mount.point in _OWN_TMPFS)
    return "in this container's own file system" if own and pid_namespace() != HOST else ""


def said_to_who_is_alone(folder: Path) -> str:
    """Why nobody may come to the market in this folder, as a sentence; empty where nothing speaks for that."""
    try:
        alone = whose(folder)
    except OSError:  # nobody can tell
        alone = ""
    if alone:
        return f"the market's folder {folder} is {alone}; {ADVICE}"
    if pid_namespace() != HOST:
        return f"engines in other containers meet this one where the very same folder is mounted at {folder}"
    return ""


def _mount_of(folder: Path, lines: Iterable[str]) -> Mount:
    """The mount that a folder lies on, by the lines of proc_pid_mountinfo(5): the last of the longest that fit."""
    best = Mount(Path("/"), "/", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split()
        mount = Mount(Path(point), root, after.split()[0])
        if folder.is_relative_to(mount.point) and len(mount.point.parts) >= len(best.point.parts):
            best = mount
    return best
