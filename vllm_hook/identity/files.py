"""The files that weights are read from: they are held open, and identified by a digest of their content.

Digests are cached in ``/tmp/kvmarket-<uid>/weights``, by what changes with a file's content: device, inode, size, mtime
and ctime. So a second start reads no file again, except files of read-only images: their
times are those of the image's maker, so files of two images may have equal times.
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
_KEPT = 1024  # digests in the cache, at most
_READ_BYTES = 1 << 20  # at a time: fits into a core's cache, where the hash reads them again
_READERS = 4  # threads
_TICK = 0.05  # seconds: two changes of a file that are so far apart have different ctimes
_COARSE_TICK = 2.0  # seconds: the same for file systems that keep whole seconds
_PATIENCE = 60.0  # seconds to wait for another process that reads the same files


class ChangedError(KVMarketError):
    """A file has been changed, or replaced, since it was opened."""


def unreadable(error: OSError) -> str:
    """The reason, for the operator, why there is no digest."""
    return f"a file that it read weights from cannot be read ({error}); make it readable, and start it again"


class WeightFile:
    """A file that is held open, and its stamp from then: `digest` gives the digest of its content at that time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`. Raises OSError.

        Waits for a file that was changed just now, so that a later change shows in its stamp: up to 50 ms, or up to 2 s
        if its file system keeps times in whole seconds.
        """
        self.path = Path(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self.fd)
        tick = _TICK if status.st_ctime_ns % 1_000_000_000 else _COARSE_TICK
        if (age := time.time() - status.st_ctime) < tick:
            time.sleep(min(tick, tick - age))
            status = os.fstat(self.fd)
        self.stamp = _stamp(status)
        image = os.fstatvfs(self.fd).f_flag & os.ST_RDONLY and status.st_ctime_ns == status.st_mtime_ns
        self.keeps = not image  # the times in an image are its maker's: files of two images may have equal stamps

    def check(self) -> None:
        """Raise ChangedError unless the path still names this file and its stamp is that of its opening."""
        try:
            there = _stamp(self.path.stat())
        except OSError:
            there = None
        if not self.stamp == there == _stamp(os.fstat(self.fd)):
            raise ChangedError(CHANGED)

    def digest(self) -> str:
        """A 128-bit digest of the content; reads the whole file. Raises ChangedError and OSError."""
        digest, buffer, at = xxhash.xxh3_128(), memoryview(bytearray(_READ_BYTES)), 0
        while count := os.preadv(self.fd, [buffer], at):
            digest.update(buffer[:count])
            at += count
        if _stamp(os.fstat(self.fd)) != self.stamp:
            raise ChangedError(CHANGED)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def digest_of(files: Sequence[WeightFile]) -> str:
    """One digest of the contents of all files, ordered by file name; folders do not count.

    Reads only files without a cached digest: 0.05 s a GB if in memory (bench/results/h200x1-weights.json). Raises
    ChangedError for a file that was changed since it was opened, and OSError for one that cannot be read.
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
    """A cache of digests by stamp, in a file. If the file is missing or damaged, the cache is empty."""

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
        """The cached digest of the file with this stamp, or None."""
        return self._digests.get(stamp)

    def add(self, digests: dict[Stamp, str]) -> None:
        """Add digests and write the file, with the newest `_KEPT` of all. A failure to write is counted."""
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
    """Lock the cache and hand it over, so that only one process reads the files; another waits `_PATIENCE` at most."""
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
        fcntl.flock(fd, fcntl.LOCK_UN)  # to close `fd` would not unlock it if this process was forked meanwhile
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
