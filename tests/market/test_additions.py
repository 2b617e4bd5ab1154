"""A way and a kind of memory of somebody's own: all of each is here, and one line for each adds it to a market."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import msgspec
import pytest
import torch

import kvmarket
from kvmarket.errors import TransportError
from kvmarket.kernels.addresses.tables import Table
from kvmarket.layout.paged import SlotArray
from kvmarket.processes.shared_file import Process
from kvmarket.transport import Memory, decode_memory, export, map_memory
from kvmarket.transport.sharing import KINDS
from kvmarket.ways import Copy
from kvmarket.ways.choice import Candidate, Rate
from kvmarket.ways.cpu import WAYS
from kvmarket.ways.way import Maker, Means, Way
from tests.model_engine import BLOCK, ModelEngine, matched, prompt


class FileMemory(Memory, msgspec.Struct, frozen=True, tag="file"):
    """Memory in plain files, which whoever has the path maps."""

    owner: Process
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    mapped_on: ClassVar[str] = "cpu"

    @classmethod
    def takes(cls, storages: Sequence[torch.UntypedStorage]) -> bool:
        """Whether all of it lies in files already."""
        return super().takes(storages) and all(storage.filename for storage in storages)

    @classmethod
    def export(cls, storages: Sequence[torch.UntypedStorage]) -> FileMemory:
        """Name the files."""
        paths = tuple(str(storage.filename) for storage in storages)
        return FileMemory(Process.current(), paths, tuple(storage.nbytes() for storage in storages))

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map them."""
        files = zip(self.paths, self.sizes, strict=True)
        return [torch.from_file(path, shared=True, size=size, dtype=torch.uint8) for path, size in files]


class ViewWay(Way):
    """Copies block by block between views of parts; few blocks at a time, and none that are summed."""

    candidate = Candidate("views")
    rates = (Rate("views", 1, 1, 1.0),)
    moved: ClassVar[list[int]] = []  # blocks of each copy

    def __init__(self, means: Means) -> None:
        self._own = means.own

    def prepare(self, source: SlotArray) -> Maker:
        """Nothing to do ahead."""
        return self._job

    def takes(self, copy: Copy, table: Table) -> bool:
        """Whether it is short, and needs no sums."""
        return len(copy.slots) <= 2 and not copy.summed

    def _job(self, copy: Copy) -> ViewJob:
        return ViewJob(self._own, copy)


class ViewJob:
    """The blocks of one copy."""

    threaded = True

    def __init__(self, own: SlotArray, copy: Copy) -> None:
        self._own, self._copy = own, copy

    def launch(self) -> None:
        """Copy them."""
        for to, of in zip(self._own.part_views(), self._copy.source.part_views(), strict=True):
            to[torch.from_numpy(self._copy.slots)] = of[torch.from_numpy(self._copy.source_slots)]
        ViewWay.moved.append(len(self._copy.slots))

    def finish(self) -> None:
        """It has no sums."""


@contextmanager
def added() -> Iterator[None]:
    """Both are added, and taken away."""
    KINDS.insert(0, FileMemory)
    WAYS.append(ViewWay)
    try:
        yield
    finally:
        KINDS.remove(FileMemory)
        WAYS.remove(ViewWay)
        ViewWay.moved.clear()


class FileEngine(ModelEngine):
    """A model engine whose cache lies in a file."""

    def allocate(self) -> None:
        """Both layers in one file."""
        shape = (2, self.slots, 2, BLOCK, 24)
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - until `close`
        cells = torch.Size(shape).numel()
        self.layers = list(torch.from_file(self.file.name, shared=True, size=cells, dtype=torch.int16).view(shape))
        self.cache = kvmarket.PagedCache(self.layers, block_size=BLOCK)

    def close(self) -> None:
        """Leave, and remove the file."""
        super().close()
        self.file.close()


def own(address: str, pipe: Connection) -> None:
    """Offer four blocks, in a process of its own, until the other side hangs up."""
    with added():
        engine = FileEngine(address, slots=16)
        engine.publish(prompt(4 * BLOCK), [9, 2, 11, 0])
        pipe.send(engine.cache.storages()[0].filename)
        pipe.poll(None)
        engine.close()


@pytest.fixture
def owner(market_address: str) -> Iterator[str]:
    """The path of the file that the owner's cache lies in."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=own, args=(market_address, there), daemon=True)
    process.start()
    there.close()
    yield here.recv()
    here.close()
    process.join()


def test_blocks_go_by_a_way_of_ones_own_from_memory_of_ones_own(owner: str, market_address: str):
    tokens = prompt(4 * BLOCK)
    with added():
        engine = FileEngine(market_address, slots=20)
        hit = matched(engine, tokens)
        (pool,) = hit.pools.values()
        ((_, memory),) = pool.ranks
        assert isinstance(memory, FileMemory) and memory.paths == (owner,), "it came through the registry"
        assert engine.market.fetch(hit, [3, 17], first=1).wait() == 2
        assert [engine.holds(slot, tokens[: blocks * BLOCK]) for slot, blocks in ((3, 2), (17, 3))] == [True, True]
        assert ViewWay.moved == [2]
        assert engine.take(tokens, [5, 6, 7, 8]) == 4
        assert ViewWay.moved == [2], "four are more than it takes"
        assert engine.market._data.mover.describe() == "shm or views (shared memory, no GPU)"
        engine.close()


def test_who_lies_in_other_memory_is_not_met(owner: str, market_address: str):
    engine = ModelEngine(market_address)
    with added():
        other = FileEngine(market_address)
        matched(other, prompt(4 * BLOCK))
        other.close()
    assert not engine.market.match(prompt(4 * BLOCK)).blocks, "its space is another: facts/shm, not facts/file"
    engine.close()


class Message(msgspec.Struct, frozen=True):
    """Something with memory in it."""

    memories: tuple[Memory, ...]


def test_a_kind_is_decoded_by_its_tag_while_it_is_listed():
    storage = torch.zeros(9, dtype=torch.uint8).untyped_storage()
    shared = export([storage])
    sent = Message((shared, FileMemory(Process.current(), ("a", "b"), (1, 2))))
    every: tuple[tuple[Any, Any], ...] = (
        (msgspec.msgpack.encode, msgspec.msgpack.decode),
        (msgspec.json.encode, msgspec.json.decode),
    )
    assert [memory.kind for memory in sent.memories] == ["shm", "file"]
    for encode, decode in every:
        with added():
            assert decode(encode(sent), type=Message, dec_hook=decode_memory) == sent
        with pytest.raises(msgspec.ValidationError, match="file"):
            decode(encode(sent), type=Message, dec_hook=decode_memory)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"memories": [7]}), type=Message, dec_hook=decode_memory)
    with pytest.raises(NotImplementedError, match=r"msgspec\.Struct"):
        msgspec.convert("a", torch.device, dec_hook=decode_memory)


def test_memory_is_mapped_only_where_its_kind_says():
    with added(), pytest.raises(TransportError, match="cannot map FileMemory"):
        map_memory(FileMemory(Process.current(), (), ()), torch.device("cuda", 0))
