"""``python -m tests.histories --runs 1000000``: so many random histories on all cores; prints what went wrong."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time

from tests.histories.node import CHUNK, run_chunk


def main() -> int:
    """Run and print; returns 1 if anything went wrong, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    jobs = [(options.seed + at, options.steps, options.engines) for at in range(0, options.runs, CHUNK)]
    start, wrong, done = time.monotonic(), 0, 0
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=200) as pool:
        for found in pool.imap_unordered(run_chunk, jobs):
            wrong, done = wrong + len(found), done + CHUNK
            for each in found:
                print(each, flush=True)
            if done % (CHUNK * 200) == 0 or done >= options.runs:
                print(f"{time.monotonic() - start:7.1f} s: {done} histories, {wrong} wrong", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
