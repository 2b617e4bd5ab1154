"""Files are named by what is in them; what is kept of them saves a second reading and never names other bytes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import xxhash

from kvmarket import counters
from kvmarket.registry.protocol import address
from vllm_hook.identity import files
from vllm_hook.identity.files import ChangedError, WeightFile, digest_of

KEPT = "weights"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own; files need not be old to have settled."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setattr(address, "_HOME", directory)
    monkeypatch.setattr(files, "_TICK", 0.005)
    return directory / f"kvmarket-{os.geteuid()}"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, in whichever order."""
    seen: list[str] = []
    digest = WeightFile.digest

    def counted(file: WeightFile) -> str:
        seen.append(file.path.name)
        return digest(file)

    monkeypatch.setattr(WeightFile, "digest", counted)
    return seen


def digest(*paths: Path) -> str:
    opened = [WeightFile(path) for path in paths]
    try:
        return digest_of(opened)
    finally:
        for file in opened:
            file.close()


def folder(path: Path, **contents: bytes) -> list[Path]:
    path.mkdir()
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return sorted(path.iterdir())


def test_only_content_counts(tmp_path: Path):
    one = folder(tmp_path / "one", a=b"1" * 3_000_000, b=b"2")
    copy = folder(tmp_path / "copy", a=b"1" * 3_000_000, b=b"2")
    linked = [tmp_path / "linked" / path.name for path in one]
    (tmp_path / "linked").mkdir()
    os.link(one[0], linked[0])
    linked[1].symlink_to(one[1])
    relative = [Path(os.path.relpath(path)) for path in one]
    assert digest(*one) == digest(*copy) == digest(*linked) == digest(*relative) == digest(*reversed(one))
    others = [{"a": b"2", "b": b"1" * 3_000_000}, {"a": b"1" * 3_000_000}, {"a": b"1" * 2_999_999 + b"0", "b": b"2"}]
    named = {digest(*folder(tmp_path / f"other{at}", **other)) for at, other in enumerate(others)}
    assert len(named | {digest(*one)}) == 4


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 50])
def test_each_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int):
    monkeypatch.setattr(files, "_READ_BYTES", 7)
    content = os.urandom(size)
    (tmp_path / "weights").write_bytes(content)
    file = WeightFile(tmp_path / "weights")
    assert file.digest() == file.digest() == xxhash.xxh3_128_hexdigest(content)
    file.close()


def test_a_second_start_reads_nothing(tmp_path: Path, reads: list[str]):
    paths = folder(tmp_path / "m", a=b"1", b=b"2")
    first = digest(*paths)
    assert sorted(reads) == ["a", "b"]
    assert digest(*paths) == first and len(reads) == 2
    (tmp_path / "m" / "b").write_bytes(b"3")
    assert digest(*paths) != first and sorted(reads) == ["a", "b", "b"]


def test_bytes_replaced_in_place_at_equal_size_and_time_are_read_again(tmp_path: Path, reads: list[str]):
    (path,) = folder(tmp_path / "m", a=b"1" * 64)
    os.utime(path, ns=(10**18, 10**18))
    first = digest(path)
    path.write_bytes(b"2" * 64)
    os.utime(path, ns=(10**18, 10**18))
    assert digest(path) != first and len(reads) == 2


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93\x01\x02\x03"])
def test_what_is_kept_may_be_broken(tmp_path: Path, runtime: Path, reads: list[str], content: bytes):
    (path,) = folder(tmp_path / "m", a=b"1")
    first = digest(path)
    (runtime / KEPT).write_bytes(content)
    assert digest(path) == first and len(reads) == 2
    assert digest(path) == first and len(reads) == 2, "it is mended"
    assert any(name.startswith("vllm_weight_digests_lost") for name in counters.snapshot())


def test_nothing_is_kept_where_there_is_no_place(tmp_path: Path, runtime: Path, reads: list[str]):
    (path,) = folder(tmp_path / "m", a=b"1")
    runtime.write_text("no directory")
    before = sum(n for name, n in counters.snapshot().items() if name.startswith("vllm_weight_digests_lost"))
    assert digest(path) == digest(path) and len(reads) == 2
    after = sum(n for name, n in counters.snapshot().items() if name.startswith("vllm_weight_digests_lost"))
    assert after == before + 2


def test_no_more_is_kept_than_fits(tmp_path: Path, runtime: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_KEPT", 2)
    for name in "abc":
        digest(*folder(tmp_path / name, **{name: name.encode()}))
    for name in "cba":
        digest(tmp_path / name / name)
    assert reads == ["a", "b", "c", "a"]
    assert [path.name for path in runtime.iterdir() if "lock" not in path.name] == [KEPT]


@pytest.mark.parametrize("moment", ["before", "while", "after"])
def test_a_file_that_changes_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str):
    (path,) = folder(tmp_path / "m", a=b"1" * 100)
    times = path.stat()
    file = WeightFile(path)

    def change() -> None:
        path.write_bytes(b"2" * 100)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    if moment == "while":
        read = os.preadv
        monkeypatch.setattr(os, "preadv", lambda *args: change() or read(*args))
        with pytest.raises(ChangedError, match="start it again"):
            digest_of([file])
        return
    if moment == "before":
        change()
    else:
        assert digest_of([file])
        change()
    with pytest.raises(ChangedError):
        file.check()


def test_a_path_that_leads_elsewhere_by_now(tmp_path: Path):
    old, new = folder(tmp_path / "v1", a=b"1") + folder(tmp_path / "v2", a=b"2")
    current = tmp_path / "current"
    current.symlink_to("v1")
    file = WeightFile(current / "a")
    file.check()
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").replace(current)
    with pytest.raises(ChangedError):
        file.check()
    assert digest_of([file]) == digest(old) != digest(new), "what is open is what was read"
    current.unlink()
    with pytest.raises(ChangedError):
        file.check()


def test_a_change_right_after_a_file_was_opened_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However coarse the clock of the file system is: the file is looked at only when that clock has gone on."""
    monkeypatch.setattr(files, "_TICK", 0.05)
    (path,) = folder(tmp_path / "m", a=b"1")
    changed = path.stat().st_ctime
    WeightFile(path).check()
    assert time.time() - changed >= 0.05
    begin = time.monotonic()
    WeightFile(path).check()
    assert time.monotonic() - begin < 0.05


def test_only_one_process_reads_at_a_time(tmp_path: Path, reads: list[str]):
    """The ranks of an engine start together and have read the same files."""
    (path,) = folder(tmp_path / "m", a=b"1")
    found: list[str] = []
    with files._only_one_reads():
        threads = [threading.Thread(target=lambda: found.append(digest(path))) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert not reads
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4 and len(reads) == 1


def test_who_has_waited_for_long_reads_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    (path,) = folder(tmp_path / "m", a=b"1")
    with files._only_one_reads():
        assert digest(path)


def test_nothing_is_kept_of_an_image_whose_times_are_its_makers(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Two images may have files of equal size, number and times; a file that was just written has equal times too."""
    (path,) = folder(tmp_path / "m", a=b"1")
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert digest(path) == digest(path) and len(reads) == 2
