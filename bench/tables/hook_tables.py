"""The documentation's tables of the vLLM hook, made from result files. Rows that were not measured are left out."""

from __future__ import annotations

import json
from pathlib import Path

from bench.tables.markdown import Row, markdown, short

TTFT_COLUMNS = [
    "prefill",
    "prefill, hook on",
    "own prefix cache",
    "peer's pool",
    "host memory (OffloadingConnector)",
    "host memory (LMCache)",
]

HTTP_COLUMNS = [*TTFT_COLUMNS[:2], "own prefix cache, hook off", "own prefix cache, hook on", "peer's pool"]

PEER_COLUMNS = {"goal": "goal for the peer's pool", "extra": "longer than own, round by round"}

RUNNING = (
    "Milliseconds per output token of requests that run meanwhile, over each whole request and between two tokens. "
    "A request with so long a prefix slows the others wherever that comes from: what the fetch itself costs is the "
    "second row beyond the third."
)


def ttft(path: Path) -> str:
    """Milliseconds to the first token, one row per prompt length."""
    result = json.loads(path.read_text())
    cells = {(row["column"], row["tokens"]): row for row in result["rows"]}
    columns = [column for column in TTFT_COLUMNS if any(column == found for found, _ in cells)]
    versions = result["versions"]
    graphs = ", LMCache's ".join(dict.fromkeys((result["graphs"], result["graphs_lmcache"])))
    text = (
        f"{result['gpu']}, vLLM {versions['vllm']}, Llama-3.1-8B shape, bf16, CUDA graphs ({graphs}), "
        f"one request at a time, median of {result['repeats']} (prefill: of {result['prompts']}) in ms (p10 – p90); "
        f"contiguous peer copy {result['copy_GBps']:.0f} GB/s. "
    )
    if "lmcache" in versions:
        text += f"LMCache {versions['lmcache']}. "
    else:
        text += "LMCache was not installed. "
    shown_too = [key for key in PEER_COLUMNS if any(key in row for row in result["rows"])]
    rows = []
    for tokens in sorted({row["tokens"] for row in result["rows"]}):
        shown = [cells.get((column, tokens)) for column in columns]
        values = [f"{row['p50']:.1f} ({row['p10']:.1f} – {row['p90']:.1f})" if row else "" for row in shown]
        peer = cells.get(("peer's pool", tokens), {})
        rows.append([f"{tokens:,}", *values, *(f"{peer[key]:.1f}" if key in peer else "" for key in shown_too)])
    if "goal" in shown_too:
        text += "Goal: own prefix cache, 1.15 times the bytes at that rate, and 2 ms. "
    head = ["prompt tokens", *columns, *(PEER_COLUMNS[key] for key in shown_too)]
    return "\n".join([f"{text}From `bench/results/{path.name}`.", *markdown(head, rows)])


def ttft_http(path: Path) -> str:
    """Milliseconds to the first token as a client of `vllm serve` sees it, one row per prompt length."""
    result = json.loads(path.read_text())
    cells = {(row["column"], row["tokens"]): row for row in result["rows"]}
    columns = HTTP_COLUMNS
    rows = []
    for tokens in sorted({tokens for _, tokens in cells}):
        shown = [cells[column, tokens] for column in columns]
        values = [f"{row['p50']:.1f} ({row['p10']:.1f} – {row['p90']:.1f})" for row in shown]
        rows.append([f"{tokens:,}", *values, *(f"{row['goal']:.1f}" for row in shown if "goal" in row)])
    text = (
        f"{result['gpu']}, vLLM {result['versions']['vllm']}, `vllm serve` over HTTP, Llama-3.1-8B shape, bf16, as "
        f"vLLM comes, cores not chosen, one request at a time, median of {result['repeats']} (prefill: of "
        f"{result['prompts']}) in ms (p10 – p90); contiguous peer copy {result['copy_GBps']:.0f} GB/s. Goal: the "
        "own hit of the same server, 1.1 times the bytes at that rate, and 3 ms. "
    )
    return "\n".join(
        [
            f"{text}From `bench/results/{path.name}`.",
            *markdown(["prompt tokens", *columns, "goal for the peer's pool"], rows),
        ]
    )


def throughput(path: Path) -> str:
    """Two tables: tokens per second with no hits, and the time per output token while fetches run."""
    result = json.loads(path.read_text())
    rates = [row for row in result["rows"] if row["unit"] in ("tokens/s", "ratio")]
    running = [row for row in result["rows"] if "mode" in row]
    named = [[row["name"], *(short(row[key]) for key in ("p10", "p50", "p90"))] for row in rates]
    lines = [f"{result['gpu']}. From `bench/results/{path.name}`.", *markdown(["", "p10", "p50", "p90"], named)]
    if running:
        lines += ["", RUNNING]
        head = ["", "per request, p50", "slower", "gap, p50", "slower", "gap, p99"]
        lines += markdown(head, [_running(row, running[0]) for row in running])
    return "\n".join(lines)


def _running(row: Row, undisturbed: Row) -> list[str]:
    slower = f"{100 * (row['gap_p50'] / undisturbed['gap_p50'] - 1):.1f} %"
    per_request = short(row["p50"]), f"{row['slower_percent']:.1f} %"
    return [row["mode"], *per_request, short(row["gap_p50"]), slower, short(row["gap_p99"])]


def serving(path: Path) -> str:
    """One row per run: the load, requests done per second, milliseconds to the first token, share computed."""
    result = json.loads(path.read_text())
    rows = [
        [
            f"{row['load']}, {row['rate']:g} requests/s"
            if "rate" in row
            else f"{row['load']}, {row['window']} at a time on each of {row['engines']} engines",
            row["mode"],
            *(short(row[key]) for key in ("requests_per_s", "p50", "p99", "tpot_p50")),
            f"{100 * row['computed_share']:.1f} %",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["load"], row.get("rate", row.get("window"))))
    ]
    done = {(row["window"], row["mode"]): row["requests_per_s"] for row in result["rows"] if row["load"] == "retrieval"}
    more = [
        f"{done[window, 'hook on'] / done[window, mode]:.2f} times as many with {window} at a time"
        for window, mode in done
        if mode == "hook off" and (window, "hook on") in done
    ]
    text = f"Requests done in retrieval, hook on against off: {', '.join(more)}. " if more else ""
    head = ["what comes", "mode", "requests done/s", "first token p50, ms", "p99", "per output token", "computed"]
    return "\n".join([f"{result['gpu']}. {text}From `bench/results/{path.name}`.", *markdown(head, rows)])


def tiers(path: Path) -> str:
    """One row per load and mode: requests per second, over those without a tier, and times to the first token."""
    result = json.loads(path.read_text())
    loads = {one["name"]: one for one in result["settings"]["loads"]}
    none = {row["load"]: row["p50"] for row in result["rows"] if row["mode"] == "no tier"}
    rows = [
        [
            f"{row['load']}, {loads[row['load']]['window']} at a time, documents {loads[row['load']]['outgrow']} times "
            "the cache",
            row["mode"],
            short(row["p50"]),
            f"{row['p50'] / none[row['load']]:.2f}",
            *(f"{row[key]:.0f}" for key in ("first_p50_ms", "first_p90_ms")),
            f"{100 * row['computed_share']:.1f} %",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["load"], row["p50"]))
    ]
    gpus = result["settings"]["gpus"]
    where = "the lender on the engine's own GPU" if len(gpus) == 1 else "the lender on the second GPU"
    text = (
        f"{result['gpu']}, vLLM {result['versions'].get('vllm', '')}, Llama-3.1-8B shape, bf16, own cache of "
        f"{result['settings']['own_gb']:g} GB, {where}; median of {result['settings']['repeats']} runs of "
        f"{result['settings']['requests']} requests. {result.get('note', '')} From `bench/results/{path.name}`."
    )
    head = ["asked", "mode", "requests/s", "times no tier", "first token p50, ms", "p90", "computed"]
    return "\n".join([text, *markdown(head, rows)])


def waits(path: Path) -> str:
    """One row per length and number of requests at a time: the ratio of request rates, and times to the first token."""
    result = json.loads(path.read_text())
    cells = {(row["tokens"], row["window"], row["mode"]): row for row in result["rows"]}
    rows = []
    for tokens, window in sorted({(tokens, window) for tokens, window, _ in cells}):
        on, off = (cells[tokens, window, mode] for mode in ("waits", "does not"))
        rate = on["requests_per_s"] / off["requests_per_s"]
        rows.append([f"{tokens:,}", str(window), f"{rate:.2f}", *(short(row["p50"]) for row in (on, off))])
    head = ["prompt tokens", "at a time", "requests/s, waiting over not", "first token p50, waiting, ms", "not waiting"]
    return "\n".join([f"{result['gpu']}. From `bench/results/{path.name}`.", *markdown(head, rows)])


def outputs(path: Path) -> str:
    """One row per mode: answers, tokens imported, answers that imports left the same, and the model's own spread."""
    result = json.loads(path.read_text())
    rows = [
        [row["mode"], *(f"{row[key]:,}" for key in ("answers", "tokens_imported", "same", "spread"))]
        for row in result["rows"]
    ]
    head = ["mode", "answers", "tokens imported", "same as without", "differ without the hook too"]
    killed = all("service" in row for row in result["rows"])
    text = f"{result['gpu']}. " + ("In each mode the market's service is killed halfway. " if killed else "")
    return "\n".join([f"{text}From `bench/results/{path.name}`.", *markdown(head, rows)])
