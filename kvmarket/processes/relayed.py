"""Processes of other PID namespaces, which this process cannot watch by their numbers.

The control half of a market holds descriptors of the memory of such a process, until the service says that the process
has left. So the process counts as alive for as long as the control half holds its memory.
"""

from __future__ import annotations

import msgspec

from kvmarket.processes.shared_file import Process, SharedFile


class Relayed(msgspec.Struct, frozen=True):
    """A process of another PID namespace, and a file of its memory that a process of our namespace holds open."""

    process: Process
    file: SharedFile

    def alive(self) -> bool:
        """Whether its memory is still held open for us; it is closed when the service reports its end. Costs 10 us."""
        return self.file.held()


def lives_with(process: Process, file: SharedFile) -> Process | Relayed:
    """What to watch for the end of `process`: itself in our PID namespace, else whether its `file` is held for us."""
    return process if process.near else Relayed(process, file)
