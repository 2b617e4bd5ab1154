"""What every kind of memory has in common: its travelling descriptor, which says how others map it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec
import torch

from kvmarket.processes.shared_file import Process, SharedFile


class Memory:
    """Memory that other processes can map. Each kind is one frozen, tagged ``msgspec.Struct`` that is a `Memory` too.

    Kinds are listed in `kvmarket.transport.sharing.KINDS`. The descriptor of a kind travels: it names memory, and owns
    none.
    """

    __slots__ = ()
    __struct_config__: ClassVar[msgspec.structs.StructConfig]
    mapped_on: ClassVar[str]  # the type of the devices that map it

    @classmethod
    def takes(cls, storages: Sequence[torch.UntypedStorage]) -> bool:
        """Whether `export` can share these storages: unless a kind says more, those on devices that map it."""
        return {storage.device.type for storage in storages} == {cls.mapped_on}

    @classmethod
    def export(cls, storages: Sequence[torch.UntypedStorage]) -> Memory:
        """Share the storages, and name them, one segment each. Raises TransportError with what to do."""
        raise NotImplementedError

    def map(self, device: torch.device) -> list[torch.Tensor]:
        """Map each segment for reading, as 1-D uint8 on `device`. Raises TransportError with what to do."""
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """The kind's name, which is the tag of its struct. Engines meet only where the kinds are the same."""
        return str(self.__struct_config__.tag)

    @property
    def owner(self) -> Process:
        """The process that owns the memory."""
        raise NotImplementedError

    @property
    def device(self) -> str:
        """The UUID of the GPU that the memory lies on; empty where it lies on none."""
        return ""

    @property
    def shared_files(self) -> tuple[SharedFile, ...]:
        """The shared memory that other PID namespaces need descriptors of; none where the device's driver finds it."""
        return ()

    def held_by(self, process: Process, descriptors: Iterator[int]) -> Memory:
        """The same memory, its files named by as many of these descriptors of a process beside us as it has files."""
        return self
