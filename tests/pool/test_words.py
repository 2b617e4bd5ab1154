"""The shared words of generations: where each lies, how large their file is, and how it is sealed."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvmarket.errors import SharedMemoryError
from kvmarket.pool import GenerationReader, Generations
from kvmarket.pool import generations as module
from kvmarket.processes.shared_file import SharedFile

MAGIC = 0x4B564D4B545F3031
SHRINK, GROW, FUTURE_WRITE = 0x2, 0x4, 0x10  # linux/fcntl.h


@pytest.fixture
def generations():
    made = Generations(3)
    yield made
    made.close()


def words_of(generations):
    """The words, read as another process does."""
    return np.frombuffer(generations.file.map(), np.uint64).tolist()


def open_files():
    """How many descriptors of generations this process has open."""
    return sum(
        "kvmarket-generations" in str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()
    )


def test_words_lie_where_the_documentation_says(generations):
    assert words_of(generations) == [MAGIC, 3, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    generations.raise_epoch()
    generations.raise_slots(np.array([0, 2]))
    assert words_of(generations) == [MAGIC, 3, 2, 0, 0, 0, 0, 0, 2, 1, 2]


def test_how_many_leading_slots_have_the_generations_they_had(generations):
    slots = np.array([2, 0, 1])
    before = generations.read(slots)
    assert generations.still(slots, before) == 3
    generations.raise_slots(np.array([0]))
    assert generations.still(slots, before) == 1
    assert generations.still(slots, before + np.uint64(1)) == 0


def test_the_file_is_as_large_as_its_words_and_stays_in_this_process(generations):
    assert os.fstat(generations.file.fd).st_size == generations.file.nbytes == 8 * (8 + 3)
    assert not os.get_inheritable(generations.file.fd)


def test_memory_is_reserved_before_it_is_used(monkeypatch):
    """A store into memory that there is not kills the process."""
    reserved = []

    def reserve(fd, offset, count):
        reserved.append((offset, count))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    before = open_files()
    with pytest.raises(SharedMemoryError, match="no shared memory for 3 generations: No space left on device; free"):
        Generations(3)
    assert reserved == [(0, 88)]
    assert open_files() == before


def test_the_file_is_sealed_as_far_as_the_kernel_can(monkeypatch):
    def seals(refused):
        def control(fd, command, argument):
            if argument & refused:
                raise OSError(22, "Invalid argument")
            return real(fd, command, argument)

        monkeypatch.setattr(module.fcntl, "fcntl", control)
        made = Generations(1)
        monkeypatch.setattr(module.fcntl, "fcntl", real)
        found = real(made.file.fd, fcntl.F_GET_SEALS)
        made.close()
        return found

    real = fcntl.fcntl
    assert seals(0) in (SHRINK | GROW | FUTURE_WRITE, SHRINK | GROW)
    assert seals(FUTURE_WRITE) == SHRINK | GROW
    assert seals(SHRINK) == 0


def test_the_only_writer_has_its_mapping_before_the_file_is_sealed(generations):
    if not fcntl.fcntl(generations.file.fd, fcntl.F_GET_SEALS) & FUTURE_WRITE:
        pytest.skip("this kernel cannot forbid further writable mappings")
    with pytest.raises(PermissionError):
        mmap.mmap(generations.file.fd, 88)
    with pytest.raises(PermissionError):
        os.ftruncate(generations.file.fd, 96)


def test_closing_twice_raises_the_epoch_and_frees_the_descriptor_once():
    generations = Generations(1)
    reader, fd = GenerationReader(generations.file, 1), generations.file.fd
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    generations.close()
    assert reader.epoch == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    again = os.open(os.devnull, os.O_RDONLY)
    generations.close()
    assert reader.epoch == 2
    for number in (0, 1, again, *held):
        os.fstat(number)
    for number in (again, *held):
        os.close(number)


def test_a_process_without_standard_input_closes_them_as_well():
    saved = os.dup(0)
    os.close(0)
    try:
        generations = Generations(1)
        assert generations.file.fd == 0
        reader = GenerationReader(generations.file, 1)
        generations.close()
        assert reader.epoch == 2
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_another_name_of_the_same_machine(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    Generations(1).close()


@pytest.mark.parametrize(("magic", "slots"), [(MAGIC + 1, 3), (0, 3), (MAGIC, 4), (MAGIC, 0)])
def test_files_of_something_else_are_refused(magic, slots):
    fd = os.memfd_create("words")
    os.write(fd, np.array([magic, slots, 1, *[0] * 5, 1, 1, 1], np.uint64).tobytes())
    with pytest.raises(SharedMemoryError, match="holds no generations of this pool"):
        GenerationReader(SharedFile.of(fd, 88), 3)
    os.close(fd)


def test_a_size_that_does_not_fit_is_refused_before_anything_is_mapped(generations):
    for nbytes in (0, 80, 96):
        with pytest.raises(SharedMemoryError, match=f"of 3 slots need 88 bytes, not {nbytes}"):
            GenerationReader(msgspec.structs.replace(generations.file, nbytes=nbytes, fd=10_000), 3)
