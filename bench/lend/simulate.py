"""How much of recorded prompts a lender would find, by the policy that says which blocks it keeps.

    python -m bench.lend.simulate --trace conversation_trace.jsonl                      prints a table
    python -m bench.lend.simulate --trace a.jsonl --trace b.jsonl --write laptop        also writes a result file

Traces are Mooncake's (see trace.py). One cache serves all requests; a request finds the leading blocks of its prompt
that are kept. `share`: blocks found, of all blocks asked for. `ceiling`: what a cache without bounds would find, and
`ratio` the share of that. `bytes`: of the cache; a token takes 131,072 bytes unless `--token-bytes` says otherwise
(Llama-3.1-8B, bf16).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.lend.policies import POLICIES
from bench.lend.trace import BLOCK_TOKENS, Request, endless, read

GIGABYTES = (30, 60, 160, 400, 1000)
TOKEN_BYTES = 131_072


def simulate(
    name: str, requests: Sequence[Request], sizes: Iterable[float], token_bytes: int, policies: Iterable[str]
) -> list[dict[str, Any]]:
    """One row for each policy and each size in gigabytes."""
    asked = sum(len(request.blocks) for request in requests)
    ceiling = endless(requests) / asked
    rows = []
    for size in sizes:
        capacity = max(1, int(size * 1e9) // (BLOCK_TOKENS * token_bytes))
        for policy in policies:
            cache = POLICIES[policy](capacity, requests)
            share = sum(cache.request(request.blocks) for request in requests) / asked
            row = {"name": f"{name}, {policy}", "bytes": int(size * 1e9), "policy": policy, "blocks": capacity}
            row |= dict.fromkeys(("p10", "p50", "p90", "share"), round(share, 4)) | {"unit": "share"}
            rows.append(row | {"ceiling": round(ceiling, 4), "ratio": round(share / ceiling, 4)})
    return rows


def table(rows: Sequence[dict[str, Any]], policies: Sequence[str]) -> str:
    """The shares of one trace: a line for each size, a column for each policy."""
    lines = [f"{'GB':>6}" + "".join(f"{policy:>10}" for policy in (*policies, "endless"))]
    for size in dict.fromkeys(row["bytes"] for row in rows):
        shares = {row["policy"]: row["share"] for row in rows if row["bytes"] == size}
        shown = [*(shares[policy] for policy in policies), rows[0]["ceiling"]]
        lines.append(f"{size / 1e9:>6.0f}" + "".join(f"{share:>10.3f}" for share in shown))
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, and write if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=GIGABYTES, help="sizes of the cache")
    parser.add_argument("--token-bytes", type=int, default=TOKEN_BYTES)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--write", metavar="MACHINE", help="also write bench/results/MACHINE-keep.json")
    options = parser.parse_args()
    rows = []
    for path in options.trace:
        requests = read(path)
        found = simulate(path.stem, requests, options.gigabytes, options.token_bytes, options.policies)
        print(f"{path.stem}: {len(requests):,} requests\n{table(found, options.policies)}", flush=True)
        rows += found
    if options.write:
        report.write(options.write, "keep", rows, token_bytes=options.token_bytes)


if __name__ == "__main__":
    main()
