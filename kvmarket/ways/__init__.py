"""The ways to move blocks, all behind one fetch: what a way is (`way`), which one is taken (`choice`), who drives it.

========  ==============================================================================================
`pull`    one kernel reads the owner's slots over the link and writes our own
`copy`    slot to slot by the copy engine, where slots are contiguous on both sides: no SM at all
`staged`  packed slots by the copy engine into a ring of local buffers, a scatter kernel behind it
`shm`     POSIX shared memory, by a thread of the CPU
========  ==============================================================================================

Those of a GPU are the modules of `gpu`, listed in `gpu.mover.WAYS`; the one of a CPU is in `cpu`, listed in `cpu.WAYS`.
"""

from __future__ import annotations

from kvmarket.ways.copying import FAILURES, Copy, Int64s, Mover, Started

__all__ = ["FAILURES", "Copy", "Int64s", "Mover", "Started"]
