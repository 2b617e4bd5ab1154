"""Plots beside the results of the benchmarks of transfers and of serving: ``python -m bench.tables.plots``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.report import RESULTS
from bench.tables.pages import CO_FETCHES, CO_RUNNERS, TRANSFER_ROWS, Row, by_default

SERVING_MODES = {"hook on": "C0", "hook off": "C1", "host offload": "C2"}
mpl.use("Agg")


def rate(rows: list[Row]) -> Figure:
    """GB/s over the bytes of a fetch, one line per way; a dashed line for the contiguous copy of as many bytes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ceilings: dict[int, float] = {}
    for name, label in TRANSFER_ROWS.items():
        mine = [row for row in rows if row["name"] == name]
        points = sorted((row["bytes"], row["GBps"]) for row in mine)
        ceilings |= {row["bytes"]: row["bytes"] / row["ceiling"] / 1e3 for row in mine}
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label + by_default(mine))
    if ceilings:
        axes.plot(*zip(*sorted(ceilings.items()), strict=True), "k--", label="one contiguous copy")
        axes.legend(fontsize=8)
    axes.set_xscale("log", base=2)
    ticks = sorted(ceilings)
    axes.set_xticks(ticks, [f"{size >> 20:,} MiB" for size in ticks])
    axes.set(xlabel="bytes of a fetch", ylabel="GB/s", ylim=(0, None))
    axes.grid(alpha=0.3)
    return figure


def co_runner(rows: list[Row]) -> Figure:
    """By how many percent a model's step gets slower: one bar per kind of fetch, for each of the four co-runners."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, CO_RUNNERS.items(), strict=True):
        lost = {row["fetch"]: row["slower_percent"] for row in rows if row["name"] == name}
        shown = {label: lost[fetch] for fetch, label in CO_FETCHES.items() if fetch in lost}
        bars = axes.barh(list(shown), list(shown.values()))
        axes.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("slower, percent", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.margins(x=0.12)
        axes.invert_yaxis()
    return figure


def load(rows: list[Row]) -> Figure:
    """Time to the first token (median, and p99 dashed) and requests done in a second, over the request rate."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    times, done = figure.subplots(1, 2)
    for mode, color in SERVING_MODES.items():
        points = sorted(
            (row["rate"], row["p50"], row["p99"], row["requests_per_s"])
            for row in rows
            if row.get("load") == "chat" and row["mode"] == mode
        )
        if points:
            rates, medians, worst, requests = zip(*points, strict=True)
            times.plot(rates, medians, color=color, marker="o", markersize=4, label=mode)
            times.plot(rates, worst, color=color, linestyle="--", marker=".", label=f"{mode}, p99")
            done.plot(rates, requests, color=color, marker="o", markersize=4, label=mode)
            times.set_yscale("log")
            times.legend(fontsize=8)
            done.legend(fontsize=8)
    times.set(xlabel="requests that come in a second", ylabel="ms to the first token")
    done.set(xlabel="requests that come in a second", ylabel="requests done in a second")
    for axes in (times, done):
        axes.grid(alpha=0.3)
    return figure


PLOTS: dict[str, dict[str, Callable[[list[Row]], Figure]]] = {  # by suite
    "transfer": {"rate": rate, "co-runner": co_runner},
    "serving": {"load": load},
}


def draw(path: Path) -> list[Path]:
    """Draw the results in `path`, ``<machine>-<suite>.json``, into SVG files beside it; returns them. Deterministic."""
    result = json.loads(path.read_text())
    files = []
    with mpl.rc_context({"svg.hashsalt": "kvmarket"}):
        for name, plot in PLOTS[path.stem.rpartition("-")[2]].items():
            figure = plot(result["rows"])
            figure.suptitle(f"{result.get('gpu', result['machine'])}, {path.name}", fontsize=10)
            files.append(path.with_name(f"{path.stem}-{name}.svg"))
            figure.savefig(files[-1], format="svg", metadata={"Date": None})
    return files


if __name__ == "__main__":
    for suite in PLOTS:
        for results in sorted(RESULTS.glob(f"*-{suite}.json")):
            for file in draw(results):
                print(f"wrote {file}")
