"""Tables of the README, made from ``bench/results/``:  python -m bench.tables  writes them between their markers."""

from __future__ import annotations

import json
from pathlib import Path

from bench.report import RESULTS

README = RESULTS.parent.parent / "README.md"
TTFT_COLUMNS = ["prefill", "own prefix cache", "peer's pool", "host memory (OffloadingConnector)"]


def ttft(path: Path) -> str:
    """Milliseconds to the first token, one row per prompt length."""
    result = json.loads(path.read_text())
    cells = {(row["column"], row["tokens"]): row for row in result["rows"]}
    versions = result["versions"]
    lines = [
        f"{result['gpu']}, vLLM {versions['vllm']}, Llama-3.1-8B shape, bf16, CUDA graphs, one request at a time, "
        f"median of {result['repeats']} in ms (p10 – p90); contiguous peer copy {result['copy_GBps']:.0f} GB/s. "
        f"From `bench/results/{path.name}`.",
        "",
        "| prompt tokens | " + " | ".join(TTFT_COLUMNS) + " |",
        "|---|" + "---|" * len(TTFT_COLUMNS),
    ]
    for tokens in sorted({row["tokens"] for row in result["rows"]}):
        shown = [cells[column, tokens] for column in TTFT_COLUMNS]
        values = [f"{row['p50']:.1f} ({row['p10']:.1f} – {row['p90']:.1f})" for row in shown]
        lines.append(f"| {tokens:,} | " + " | ".join(values) + " |")
    return "\n".join(lines)


TABLES = {"ttft": (ttft, "h200x2-ttft.json")}


def fill(text: str) -> str:
    """`text` with every marked table made anew from its results."""
    for name, (make, file) in TABLES.items():
        if (RESULTS / file).exists():
            head, tail = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
            before, _, rest = text.partition(head)
            text = before + head + make(RESULTS / file) + "\n" + tail + rest.partition(tail)[2]
    return text


if __name__ == "__main__":
    README.write_text(fill(README.read_text()))
