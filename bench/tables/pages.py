"""Tables of the documentation, made from ``bench/results/``; ``python -m bench.tables`` puts them between markers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from bench.report import RESULTS
from bench.tables import hook_tables
from bench.tables.markdown import Row, markdown, short

ROOT = RESULTS.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRANSFER_ROWS = {
    "packed_staged": "packed source (staged)",
    "packed_pull": "packed source, pulled",
    "contiguous_copy": "contiguous slots, copy engine",
    "in_place": "pages in place",
    "pull_8": "pages in place, 8 programs",
    "pull_132": "pages in place, every SM",
}
TRANSFER_SIZES = {16 << 20: "16 MiB", 64 << 20: "64 MiB", 256 << 20: "256 MiB", 1 << 30: "1 GiB"}
BASELINES = {
    "index_select": "`index_select` and `index_copy_`",
    "copy_per_page": "one copy per page",
    "memcpy_batch": "`cudaMemcpyBatchAsync` of pages",
}
CO_RUNNERS = {
    f"co_runner_{side}_{model}": f"{model}-like on the {side}"
    for model in ("decode", "prefill")
    for side in ("reader", "owner")
}
CO_FETCHES = {  # here "contiguous_copy" is the bare copy, and "contiguous" a fetch by the copy engine
    "contiguous_copy": "one contiguous copy, no fetch",
    "contiguous": "contiguous slots, copy engine",
    "packed_staged": "packed source (staged)",
    **{f"pull_{n}": f"pages in place, {n} programs" for n in (4, 8, 10, 12, 16, 24)},
    "pull_132": "pages in place, every SM",
}


def transfer(path: Path) -> str:
    """Three tables: rates of fetches, other costs, and what a co-runner loses. Rows without results are left out."""
    result = json.loads(path.read_text())
    versions, rows = result["versions"], result["rows"]
    lines = [
        f"{result.get('gpu', result['machine'])}, torch {versions.get('torch', '?')}, triton "
        f"{versions.get('triton', '?')}, blocks of 2 MiB (Llama-3.1-8B shape, 32 layers x 64 KiB pages), random slots "
        "on both sides, process to process, two fetches under way all the time, "
        f"median of {result.get('repeats', '?')}: GB/s (percent of the contiguous copy of as many bytes, "
        f"timed the same way). From `bench/results/{path.name}`.",
        *markdown(["what is fetched", *TRANSFER_SIZES.values()], _rates(rows)),
        *markdown(["beside that", "", ""], _costs(rows)),
    ]
    losses = list(_losses(rows))
    if losses:
        text = "What a model loses in percent of its step time while one fetch of 256 MiB after the other runs, and"
        lines += ["", f"{text} the GB/s that these reach meanwhile:"]
        lines += markdown(["fetched meanwhile", *CO_RUNNERS.values()], losses)
    return "\n".join(lines)


def _rates(rows: list[Row]) -> Iterable[list[str]]:
    """Rows of GB/s (ratio) for every way and size; the last row is the contiguous copy."""
    cells = {(row["name"], row["bytes"]): row for row in rows}
    for name, label in TRANSFER_ROWS.items():
        shown = [cells.get((name, size)) for size in TRANSFER_SIZES]
        if any(shown):
            yield [
                label + by_default(row for row in shown if row),
                *(f"{short(row['GBps'])} ({short(100 * row['ratio'])} %)" if row else "" for row in shown),
            ]
    ceilings = [
        [cells[name, size]["ceiling"] for name in TRANSFER_ROWS if (name, size) in cells] for size in TRANSFER_SIZES
    ]
    if any(ceilings):
        rates = (
            short(size / statistics.median(us) / 1e3) if us else ""
            for size, us in zip(TRANSFER_SIZES, ceilings, strict=True)
        )
        yield ["the contiguous copy itself", *rates]


def by_default(rows: Iterable[Row]) -> str:
    """A suffix for the label of these rows of one name: the number of programs, if the name does not have it."""
    programs = {row["programs"] for row in rows if row.get("programs") and str(row["programs"]) not in row["name"]}
    return f", {programs.pop()} programs" if programs else ""


def _costs(rows: list[Row]) -> Iterable[list[str]]:
    """Rows of latency, the caller's CPU time, both directions, kernels within one GPU, and the baselines."""
    cells = {(row["name"], row["bytes"]): row for row in rows}
    first = {row["name"]: row for row in reversed(rows)}
    for name, label in (
        ("one_block", "one block of 2 MiB, call to done"),
        ("cpu_2048", "CPU time of the caller, 2,048 blocks"),
    ):
        if row := first.get(name):
            yield [label, f"{short(row['p50'])} us", f"p10 – p90: {short(row['p10'])} – {short(row['p90'])} us"]
    if row := first.get("both_ways"):
        yield ["both GPUs at once, contiguous slots", f"{short(row['p50'])} GB/s", _share(row, "bare copies both ways")]
    for name in ("pack", "scatter"):
        if row := cells.get((name, 1 << 30)):
            yield [f"{name} within one GPU, 1 GiB", f"{short(row['GBps'])} GB/s", _share(row, "a copy within the GPU")]
    alone = "256 MiB of pages in place, one call at a time"
    if (row := cells.get(("in_place", 256 << 20))) and "call_p50" in row:
        ratio = {"ratio": row["call_ratio"]}
        yield [f"{alone}: fetch", f"{short(row['bytes'] / row['call_p50'] / 1e3)} GB/s", _share(ratio, "one copy")]
    for name, label in BASELINES.items():
        if row := cells.get((f"baseline_{name}", 256 << 20)):
            yield [f"{alone}: {label}", f"{short(row['GBps'])} GB/s", _share(row, "one copy")]


def _share(row: Row, of: str) -> str:
    return f"{short(100 * row['ratio'])} % of {of}"


def _losses(rows: list[Row]) -> Iterable[list[str]]:
    """Rows of percent lost (GB/s) for every kind of fetch and each of the four co-runners."""
    cells = {(row["name"], row.get("fetch")): row for row in rows}
    for fetch, label in CO_FETCHES.items():
        shown = [cells.get((model, fetch)) for model in CO_RUNNERS]
        if any(shown):
            values = (
                f"{short(round(row['slower_percent'], 1))} % ({short(row['GBps'])})" if row else "" for row in shown
            )
            yield [label, *values]


REGISTRY = {  # row of a result: its label in the documentation
    "match, int32 array": "match in a trie of a million blocks, 8,192 tokens (int32 array)",
    "match, list": "the same from a Python list",
    "insert, all new": "insert, 8,192 new tokens",
    "memory": "memory of that trie",
    "visible, prompts of 64 blocks": "eight engines publish 2,000 blocks a second, 64 each: until others match them",
    "visible, single blocks": "the same block by block, as they do while they decode",
    "match, CPU, prompts of 64 blocks": "CPU time of each match while 64 come at a time, news of the market included",
    "engine killed": "engine killed until nobody matches its offers, 100 times",
    "service killed": "service killed under load until all matches are right again, 100 times",
}


def registry(path: Path) -> str:
    """The registry's times and sizes; `path` is a machine's ``recover`` file, with its other two beside it."""
    files = [path.with_name(path.name.replace("recover", suite)) for suite in ("trie", "visible", "recover")]
    rows = {row["name"]: row for file in files for row in json.loads(file.read_text())["rows"]}
    table = [
        [label, *(f"{short(row[key])} {row['unit']}" if key in row else "" for key in ("p50", "p99", "max"))]
        for name, label in REGISTRY.items()
        if (row := rows.get(name))
    ]
    named = ", ".join(f"`bench/results/{file.name}`" for file in files)
    return "\n".join([f"Two CPU cores for everything. From {named}.", *markdown(["", "p50", "p99", "max"], table)])


def coverage(path: Path) -> str:
    """What part of each folder's lines the tests run, on a machine without a GPU and on one with it if measured."""
    files = [path, *(other for other in sorted(path.parent.glob("*-coverage.json")) if other != path)]
    results = [json.loads(file.read_text()) for file in files]
    cells = [{row["name"]: row for row in result["rows"]} for result in results]
    table = [
        [
            f"`{name}`",
            f"{row['lines']:,}",
            *(f"{100 * cell[name]['covered'] / cell[name]['lines']:.0f} %" if name in cell else "" for cell in cells),
            f"`{row['worst']}` ({row['missed']})" if row["missed"] else "",
        ]
        for name, row in cells[0].items()
        if row["lines"]
    ]
    named = ", ".join(f"`bench/results/{file.name}`" for file in files)
    columns = ["folder", "lines", *(f"run on {result['machine'].upper()}" for result in results), "most lines not run"]
    return "\n".join([f"From {named}.", *markdown(columns, table)])


def versions(path: Path) -> str:
    """Tests passed and failed per version of vLLM; tests/vllm_hook/engines/versions.py writes `path`."""
    result = json.loads(path.read_text())
    columns = ["vLLM", "torch", "tests passed", "failed"]
    table = []
    for row in result["rows"]:
        sources, _, libraries = row["versions"].get("vllm", "").partition("+cpu.")
        name = f"{sources}, its Python sources over the compiled libraries of {libraries}" if libraries else row["name"]
        table.append([name, row["versions"]["torch"], str(row["passed"]), str(row["failed"])])
    text = f"Real engines sharing prefixes, on the {result['machine'].upper()} build. From `bench/results/{path.name}`."
    return "\n".join([text, *markdown(columns, table)])


def keep(path: Path) -> str:
    """The share of prompts that a cache finds, by its size (rows) and policy (columns), for each trace."""
    result = json.loads(path.read_text())
    policies = list(dict.fromkeys(row["policy"] for row in result["rows"]))
    traces = dict.fromkeys(row["name"].removesuffix(f", {row['policy']}") for row in result["rows"])
    table = []
    for trace in traces:
        rows = [row for row in result["rows"] if row["name"].startswith(f"{trace}, ")]
        for size in dict.fromkeys(row["bytes"] for row in rows):
            shares = {row["policy"]: row["share"] for row in rows if row["bytes"] == size}
            shown = [*(shares[policy] for policy in policies), rows[0]["ceiling"]]
            table.append([trace, f"{short(size / 1e9)} GB", *(f"{100 * share:.1f} %" for share in shown)])
    text = (
        f"Share of the blocks of all prompts that are found, {result['token_bytes']:,} bytes a token. Simulated; from "
        f"`bench/results/{path.name}`."
    )
    return "\n".join([text, *markdown(["trace", "memory", *policies, "without bounds"], table)])


def host(path: Path) -> str:
    """The rate of fetches from a lender's memory of the host, by their size (rows) and way (columns)."""
    result = json.loads(path.read_text())
    fetches: dict[int, dict[str, Row]] = {}
    for row in result["rows"]:
        if row["name"].startswith("fetch, "):
            fetches.setdefault(row["bytes"], {})[row["name"].split(", ")[1]] = row
    ways = list(next(iter(fetches.values())))
    table = []
    for size, rows in fetches.items():
        shown = [f"{rows[way]['p50']:.1f}" for way in ways]
        table.append(
            [f"{size >> 20:,} MiB", *shown, f"{rows[ways[0]]['ceiling']:.1f}", f"{rows[ways[0]]['ratio']:.2f}"]
        )
    text = (
        f"{result['gpu']}, GB/s, median of {result['repeats']}; ceiling: the copy engine from pinned memory, "
        f"one range of as many bytes. From `bench/results/{path.name}`."
    )
    return "\n".join([text, *markdown(["fetch", *ways, "ceiling", "share of it, by default"], table)])


TABLES = {
    "ttft": (hook_tables.ttft, "h200x2-ttft.json"),
    "ttft, default": (hook_tables.ttft, "h200x2-default-ttft.json"),
    "ttft, http": (hook_tables.ttft_http, "h200x2-vllm32-ttft-http.json"),
    "throughput, vllm 0.32": (hook_tables.throughput, "h200x2-vllm32-throughput.json"),
    "retrieval, vllm 0.32": (hook_tables.serving, "h200x2-vllm32-serving.json"),
    "throughput": (hook_tables.throughput, "h200x2-throughput.json"),
    "serving": (hook_tables.serving, "h100x2-serving.json"),
    "retrieval": (hook_tables.serving, "h100x4-retrieval.json"),
    "waits": (hook_tables.waits, "h200x2-waits.json"),
    "outputs": (hook_tables.outputs, "h100x2-outputs.json"),
    "transfer": (transfer, "h200x2-2026-11-transfer.json"),
    "registry": (registry, "cpu2-recover.json"),
    "keep": (keep, "simulated-keep.json"),
    "tiers": (hook_tables.tiers, "h200x1-tiers.json"),
    "host": (host, "h200x1-host.json"),
    "versions": (versions, "cpu-vllm-versions.json"),
}


def fill(text: str) -> str:
    """`text` with every marked table made anew from its results. Raises ValueError if one of two markers is missing."""
    for name, (make, file) in TABLES.items():
        head, tail = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
        if (RESULTS / file).exists() and (head in text or tail in text):
            start = text.index(head) + len(head)
            text = text[:start] + make(RESULTS / file) + "\n" + text[text.index(tail, start) :]
    return text


def marked(pages: Iterable[Path]) -> set[str]:
    """The names of tables whose marker is in one of these pages."""
    texts = [page.read_text() for page in pages]
    return {name for name in TABLES if any(f"<!-- bench:{name} -->" in text for text in texts)}


def main() -> None:
    """Rewrite all pages."""
    for page in PAGES:
        page.write_text(fill(page.read_text()))
