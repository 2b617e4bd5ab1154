"""Different process numbers for engines in different containers.

Containers that are started alike give their engines equal process numbers, or nearly so. If owner and reader have the
same number, CUDA takes the owner's memory for the reader's own and cannot map it. Threads use up numbers too, and are
cheap: starting some of them changes the number of the next process.
"""

from __future__ import annotations

import random
import threading

from kvmarket.processes.shared_file import pid_namespace

HOST = 0xEFFFFFFC  # inode of the host's own PID namespace, fixed in the kernel's source
MOST_THREADS = 2048  # some 40 us each


def scatter() -> int:
    """Skip a random count of process numbers, so that the next process has a random one; return the count.

    Does nothing and returns 0 in the host's own PID namespace, where numbers are unique. Returns 0 too where a thread
    cannot be started. Costs 40 ms on average, at most 80 ms.
    """
    if pid_namespace() == HOST:
        return 0
    count = random.SystemRandom().randrange(MOST_THREADS)
    for _ in range(count):
        thread = threading.Thread(target=int)
        try:
            thread.start()
        except RuntimeError:  # too many threads at this moment: go on without
            return 0
        thread.join()
    return count
