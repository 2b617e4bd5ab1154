"""The base class of all kinds of memory: a descriptor that travels, and knows how to map the memory it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec
import torch

from kvmarket.processes.shared_file import Process, SharedFile


class Memory:
    """Memory that other processes can map. Each kind is a subclass that is also a frozen, tagged ``msgspec.Struct``.

    `kvmarket.transport.sharing.KINDS` lists the kinds. An instance travels: it names memory, and owns none.
    """

    __slots__ = ()
    __struct_config__: ClassVar[msgspec.structs.StructConfig]
    mapped_on: ClassVar[str]  # the torch device type on which it can be mapped

    @classmethod
    def takes(cls, storages: Sequence[torch.UntypedStorage]) -> bool:
        """Whether `export` can share these storages. By default: whether all lie on devices of type `mapped_on`."""
        return {storage.device.type for storage in storages} == {cls.mapped_on}

    @classmethod
    def export(cls, storages: Sequence[torch.UntypedStorage]) -> Memory:
        """Share the storages and return their descriptor, one segment per storage. Raises TransportError."""
        raise NotImplementedError

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map each segment for reading, as a 1-D uint8 tensor on `device`. Raises TransportError."""
        raise NotImplementedError

    def map_ahead(self, device: torch.device) -> None:
        """Begin to map the memory on `device`, if that takes long: `map` finds it done. Never waits or raises."""

    @property
    def kind(self) -> str:
        """The kind's name, which is the tag of its struct. Engines share blocks only within one kind."""
        return str(self.__struct_config__.tag)

    @property
    def owner(self) -> Process:
        """The process that owns the memory."""
        raise NotImplementedError

    @property
    def device(self) -> str:
        """The UUID of the GPU that holds the memory; empty for memory of the host."""
        return ""

    @property
    def shared_files(self) -> tuple[SharedFile, ...]:
        """The files whose descriptors readers in other PID namespaces need; empty where CUDA's driver needs none."""
        return ()

    def held_by(self, process: Process, descriptors: Iterator[int]) -> Memory:
        """The same memory, with each of its `shared_files` named by the next of these descriptors of `process`."""
        return self
