"""Numbers of processes in containers: CUDA takes memory for a process' own whose owner has the same number elsewhere.

In containers that were started alike engines have equal numbers, or nearly so. Threads take numbers too, and are cheap.
"""

from __future__ import annotations

import random
import threading

from kvmarket.processes.shared_file import pid_namespace

HOST = 0xEFFFFFFC  # inode of the host's own PID namespace, fixed in the kernel's source
MOST_THREADS = 2048  # some 40 us each


def scatter() -> int:
    """Let the next process of this container have a number that chance picks; how many were passed over.

    Does nothing in the host's own PID namespace, where numbers are unique. Costs 40 ms, and 80 ms at most.
    """
    if pid_namespace() == HOST:
        return 0
    count = random.SystemRandom().randrange(MOST_THREADS)
    for _ in range(count):
        thread = threading.Thread(target=int)
        try:
            thread.start()
        except RuntimeError:  # there are too many at this moment: numbers are no reason to fail
            return 0
        thread.join()
    return count
