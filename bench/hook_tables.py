"""The README's tables of the vLLM hook, made from its results. What was not measured is left out."""

from __future__ import annotations

import json
from pathlib import Path

from bench.markdown import Row, markdown, short

TTFT_COLUMNS = [
    "prefill",
    "own prefix cache",
    "peer's pool",
    "host memory (OffloadingConnector)",
    "host memory (LMCache)",
]


def ttft(path: Path) -> str:
    """Milliseconds to the first token, one row per prompt length."""
    result = json.loads(path.read_text())
    cells = {(row["column"], row["tokens"]): row for row in result["rows"]}
    columns = [column for column in TTFT_COLUMNS if any(column == found for found, _ in cells)]
    versions = result["versions"]
    text = (
        f"{result['gpu']}, vLLM {versions['vllm']}, Llama-3.1-8B shape, bf16, CUDA graphs, one request at a time, "
        f"median of {result['repeats']} in ms (p10 – p90); contiguous peer copy {result['copy_GBps']:.0f} GB/s. "
    )
    if "lmcache" in versions:
        text += f"LMCache {versions['lmcache']}. "
    else:
        text += "LMCache was not installed. "
    goals = any("goal" in row for row in result["rows"])
    rows = []
    for tokens in sorted({row["tokens"] for row in result["rows"]}):
        shown = [cells.get((column, tokens)) for column in columns]
        values = [f"{row['p50']:.1f} ({row['p10']:.1f} – {row['p90']:.1f})" if row else "" for row in shown]
        goal = cells.get(("peer's pool", tokens), {}).get("goal")
        rows.append([f"{tokens:,}", *values, *([short(goal) if goal else ""] if goals else [])])
    if goals:
        text += "Goal: own prefix cache, 1.15 times the bytes at that rate, and 2 ms. "
    head = ["prompt tokens", *columns, *(["goal for the peer's pool"] if goals else [])]
    return "\n".join([f"{text}From `bench/results/{path.name}`.", *markdown(head, rows)])


def throughput(path: Path) -> str:
    """Two tables: tokens per second with no hits, and the time per output token while fetches run."""
    result = json.loads(path.read_text())
    rates = [row for row in result["rows"] if row["unit"] in ("tokens/s", "ratio")]
    running = [row for row in result["rows"] if "mode" in row]
    named = [[row["name"], *(short(row[key]) for key in ("p10", "p50", "p90"))] for row in rates]
    lines = [f"From `bench/results/{path.name}`.", *markdown(["", "p10", "p50", "p90"], named)]
    if running:
        lines += ["", "Milliseconds per output token of requests that run meanwhile (p99: of all gaps between tokens):"]
        lines += markdown(["", "p50", "slower", "p99"], [_running(row) for row in running])
    return "\n".join(lines)


def _running(row: Row) -> list[str]:
    return [row["mode"], short(row["p50"]), f"{row['slower_percent']:.1f} %", short(row["gap_p99"])]


def serving(path: Path) -> str:
    """One row for each run: what came, what was done, milliseconds to the first token, what had to be computed."""
    measured = json.loads(path.read_text())["rows"]
    rows = [
        [
            f"{row['load']}, {row['rate']:g} requests/s"
            if "rate" in row
            else f"{row['load']}, {row['engines']} engines",
            row["mode"],
            *(short(row[key]) for key in ("requests_per_s", "p50", "p99")),
            f"{100 * row['computed_share']:.0f} %",
        ]
        for row in measured
    ]
    text = f"From `bench/results/{path.name}`."
    done = {row["mode"]: row["requests_per_s"] for row in measured if row["load"] == "retrieval"}
    if {"hook on", "hook off"} <= set(done):
        text = f"Retrieval with the hook: {done['hook on'] / done['hook off']:.2f} times the requests. {text}"
    head = ["what comes", "mode", "requests done/s", "first token p50, ms", "p99", "prompt tokens computed"]
    return "\n".join([text, *markdown(head, rows)])


def outputs(path: Path) -> str:
    """One row for each mode: answers, those that imports left the same, and the model's own spread."""
    rows = [
        [row["mode"], *(f"{row[key]:,}" for key in ("answers", "tokens_imported", "same", "spread"))]
        for row in json.loads(path.read_text())["rows"]
    ]
    head = ["mode", "answers", "tokens imported", "same as without", "differ without the hook too"]
    return "\n".join([f"From `bench/results/{path.name}`.", *markdown(head, rows)])
