"""The ways to move blocks, all behind one fetch: which one is taken (`choice`), and who drives it (`gpu`, `cpu`).

========  ==============================================================================================
`pull`    one kernel reads the owner's slots over the link and writes our own
`copy`    slot to slot by the copy engine, where slots are contiguous on both sides: no SM at all
`staged`  packed slots by the copy engine into a ring of local buffers, a scatter kernel behind it
`shm`     POSIX shared memory, by a thread of the CPU
========  ==============================================================================================
"""

from __future__ import annotations

from kvmarket.ways.copying import FAILURES, Copy, Int64s, Mover, Started

__all__ = ["FAILURES", "Copy", "Int64s", "Mover", "Started"]
