"""The files that weights are read from: held open, and named by a digest of what is in them.

Digests are kept in the user's runtime directory, by what changes whenever a file's content does: device, inode, size,
and the times of its last change. So a second start reads nothing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import msgspec
import xxhash

from kvmarket import counters
from kvmarket.errors import KVMarketError
from kvmarket.registry.protocol.address import Address

Stamp: TypeAlias = tuple[int, int, int, int, int]  # device, inode, size, mtime and ctime in ns

CHANGED = "the files that it read weights from were changed while it was starting; start it again"
_KEPT = 1024  # digests
_READ_BYTES = 1 << 20  # at a time: fits a core's cache, into which the hash follows
_READERS = 4  # threads
_TICK = 0.05  # seconds: a file that changes once more so much later has another ctime
_COARSE_TICK = 2.0  # where a file system keeps whole seconds
_PATIENCE = 60.0  # seconds to wait for another process that reads the same files


class ChangedError(KVMarketError):
    """A file is not what it was when it was opened."""


def unreadable(error: OSError) -> str:
    """Why there is no digest."""
    return f"a file that it read weights from cannot be read ({error}); make it readable, and start it again"


class WeightFile:
    """A file that is held open, with its stamp at that time: `digest_of` says what was in it then."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`. Waits up to 50 ms if the file was changed just now, so that a later change shows."""
        self.path = Path(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.fd)
        tick = _TICK if status.st_ctime_ns % 1_000_000_000 else _COARSE_TICK
        if (age := time.time() - status.st_ctime) < tick:
            time.sleep(min(tick, tick - age))
            status = os.fstat(self.fd)
        self.stamp = _stamp(status)
        image = os.fstatvfs(self.fd).f_flag & os.ST_RDONLY and status.st_ctime_ns == status.st_mtime_ns
        self.keeps = not image  # an image's times are those of whoever made it: two images may have the same

    def check(self) -> None:
        """Raise ChangedError unless the path still leads to this file, as it was when it was opened."""
        try:
            there = _stamp(self.path.stat())
        except OSError:
            there = None
        if not self.stamp == there == _stamp(os.fstat(self.fd)):
            raise ChangedError(CHANGED)

    def digest(self) -> str:
        """128 bits over the content. Costs a read, 0.1 s a GB from memory. Raises ChangedError."""
        digest, buffer, at = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES)), 0
        while count := os.preadv(self.fd, [buffer], at):
            digest.update(buffer[:count])
            at += count
        if _stamp(os.fstat(self.fd)) != self.stamp:
            raise ChangedError(CHANGED)
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def digest_of(files: Sequence[WeightFile]) -> str:
    """One digest of the contents of all files, in the order of their names; where they lie does not count.

    Reads those whose digests are not kept. Raises ChangedError where one is not what it was when it was opened.
    """
    files = sorted(files, key=lambda file: file.path.name)
    with _only_one_reads() as kept:
        digests = {file: kept.get(file.stamp) for file in files}
        missing = [file for file in files if digests[file] is None]
        with ThreadPoolExecutor(_READERS) as pool:
            read = dict(zip(missing, pool.map(WeightFile.digest, missing), strict=True))
        kept.add({file.stamp: digest for file, digest in read.items() if file.keeps})
    return xxhash.xxh3_128_hexdigest(repr([digests[file] or read[file] for file in files]).encode())


class Kept:
    """Digests by stamp, in a file. Whatever is wrong with the file, it holds nothing then."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._digests: dict[Stamp, str] = {}
        if path is None:
            return
        try:
            pairs = msgspec.msgpack.decode(path.read_bytes(), type=list[tuple[Stamp, str]])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            counters.add("vllm_weight_digests_lost", reason=type(error).__name__, detail=str(path))
            return
        self._digests = dict(pairs)

    def get(self, stamp: Stamp) -> str | None:
        """The digest of the file of this stamp."""
        return self._digests.get(stamp)

    def add(self, digests: dict[Stamp, str]) -> None:
        """Keep these, and the newest of the others."""
        if self._path is None or not digests:
            return
        kept = list({**self._digests, **digests}.items())[-_KEPT:]
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            new.write_bytes(msgspec.msgpack.encode(kept))
            new.replace(self._path)
        except OSError as error:
            counters.add("vllm_weight_digests_lost", reason=type(error).__name__, detail=str(self._path))
            with suppress(OSError):
                new.unlink()


@contextmanager
def _only_one_reads() -> Iterator[Kept]:
    """What is kept; while this is held no other process reads the same files, unless it has waited for long."""
    try:
        place = Address("market")
        place.prepare()
        path = place.socket.with_name("weights")
        fd = os.open(path.with_name("weights.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (KVMarketError, OSError) as error:
        counters.add("vllm_weight_digests_lost", reason=type(error).__name__, detail=str(error))
        yield Kept(None)
        return
    try:
        _wait_for_lock(fd)
        yield Kept(path)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing it would not do if this process was forked meanwhile
        os.close(fd)


def _wait_for_lock(fd: int) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
