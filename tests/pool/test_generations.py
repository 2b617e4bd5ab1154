"""Generations: one writer, no torn value, never zero, never back."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import struct
import time

import msgspec
import numpy as np
import pytest

from kvmarket.errors import PlatformError, SharedMemoryError, SlotError
from kvmarket.pool import GenerationReader, Generations

ZERO, FIVE = np.array([0]), np.array([5])


def valid(reader, epoch, slots, generations):
    """As `GenerationReader.valid`, of lists."""
    return reader.valid(epoch, np.array(slots), np.array(generations, np.uint64)).tolist()


@pytest.fixture
def generations():
    made = Generations(100)
    yield made
    made.close()


def test_start_above_zero_and_only_rise(generations):
    before = generations.read(np.arange(100)).tolist()
    assert min(before) > 0
    generations.raise_slots(np.array([3, 99]))
    after = generations.read(np.arange(100)).tolist()
    assert [slot for slot in range(100) if after[slot] != before[slot]] == [3, 99]
    assert after[3] > before[3]


def test_valid_means_equal_to_the_offer_in_generation_and_epoch(generations):
    reader = GenerationReader(generations.file, 100)
    epoch, g = generations.epoch, int(generations.read(FIVE)[0])
    assert valid(reader, epoch, [5], [g]) == [True]
    assert valid(reader, epoch, [5, 5], [g + 1, g - 1]) == [False] * 2
    with pytest.raises(IndexError):
        valid(reader, epoch, [100], [g])
    generations.raise_slots(FIVE)
    assert valid(reader, epoch, [5, 6], [g, g]) == [False, True]
    generations.raise_epoch()
    assert valid(reader, epoch, [6], [g]) == [False]


def test_readers_see_the_raised_epoch_of_a_closed_pool():
    generations = Generations(4)
    reader, epoch, g = GenerationReader(generations.file, 4), generations.epoch, int(generations.read(ZERO)[0])
    generations.close()
    assert valid(reader, epoch, [0], [g]) == [False]
    generations.close()


def test_a_reader_cannot_write_nor_the_file_shrink(generations):
    with pytest.raises(ValueError, match="read-only"):
        GenerationReader(generations.file, 100)._words[9] = 5
    path = f"/proc/{os.getpid()}/fd/{generations.file.fd}"
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 8)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 8)
    os.close(fd)


@pytest.mark.parametrize("slots", [[-1], [100], [2**70], [1, 1], [True], [1.0], ["1"]])
def test_bad_slots_are_refused(generations, slots):
    with pytest.raises(SlotError):
        generations.as_slots(slots)


def test_a_file_that_is_not_what_was_promised(generations):
    file = generations.file
    for wrong in (
        msgspec.structs.replace(file, inode=file.inode + 1),
        msgspec.structs.replace(file, fd=10_000),
        msgspec.structs.replace(file, owner=msgspec.structs.replace(file.owner, start=1)),
    ):
        with pytest.raises(SharedMemoryError):
            GenerationReader(wrong, 100)
    with pytest.raises(SharedMemoryError):
        GenerationReader(file, 99)


def test_a_truncated_file():
    fd = os.memfd_create("short")
    os.ftruncate(fd, 16)
    from kvmarket.processes.shared_file import SharedFile

    with pytest.raises(SharedMemoryError, match="not what its owner said"):
        GenerationReader(SharedFile.of(fd, 8 * 108), 100)
    os.close(fd)


def test_other_machines_are_refused(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PlatformError, match="x86-64"):
        Generations(1)


def _watch(file, seconds, result):
    """Look at slot 0 without a pause: every value must be at least the one before, and none zero."""
    reader = GenerationReader(file, 1)
    words, last, seen, wrong = reader._words, 1, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(1000):
            value = int(words[8])
            wrong += value < last
            seen += value != last
            last = value
    result.send((seen, wrong))


def _raise_well(generations):
    generations.raise_slots(ZERO)


def _raise_torn(generations):
    """What the docstring warns of: a pack that passes through zero."""
    struct.pack_into("<Q", generations._map, 64, int(generations.read(ZERO)[0]) + 1)


@pytest.mark.parametrize(("raise_it", "sound"), [(_raise_well, True), (_raise_torn, False)], ids=["store", "pack_into"])
def test_torn_generation(raise_it, sound):
    """Another process never sees a torn value; the same test does see the one that `struct.pack_into` tears."""
    generations = Generations(1)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    watcher = context.Process(target=_watch, args=(generations.file, 2.0, theirs))
    watcher.start()
    while not ours.poll(0):
        for _ in range(1000):
            raise_it(generations)
    seen, wrong = ours.recv()
    watcher.join()
    generations.close()
    assert seen > 100
    if sound:
        assert wrong == 0
    elif wrong == 0:
        pytest.skip("this Python's struct.pack_into was not seen tearing within two seconds")
