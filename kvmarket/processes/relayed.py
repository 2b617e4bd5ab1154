"""Processes of other PID namespaces: nobody here can watch them, but who holds their memory for us hears of their end.

The control half of a market holds the descriptors of such a process' memory until the service says that it has left.
"""

from __future__ import annotations

import msgspec

from kvmarket.processes.shared_file import Process, SharedFile


class Relayed(msgspec.Struct, frozen=True):
    """A process of another PID namespace, and memory of it that a process beside us holds."""

    process: Process
    file: SharedFile

    def alive(self) -> bool:
        """Whether its memory is still held for us: it is let go of when the service tells of its end. Costs 10 us."""
        return self.file.held()


def lives_with(process: Process, file: SharedFile) -> Process | Relayed:
    """What tells of the end of `process`, of which `file` is: itself where it is near, else who holds that for us."""
    return process if process.near else Relayed(process, file)
