"""The metrics are one list: every counter behind them exists in the code, the board and the docs use their names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vllm_hook.metrics import metrics

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [path for package in ("kvmarket", "vllm_hook") for path in (ROOT / package).rglob("*.py")]
BOARD = ROOT / "examples" / "grafana" / "kvmarket.json"
ON_PAGE = {*metrics.names(), *(metrics.FETCH_SECONDS + end for end in ("_bucket", "_sum", "_count"))}
NAME = re.compile(r"kvmarket_\w+_(?:total|seconds(?:_bucket|_sum|_count)?)\b")


@pytest.fixture(scope="module")
def counted() -> set[str]:
    """Every name that the code gives to `counters.add`."""
    add = re.compile(r"counters\.add\(\s*\"(\w+)\"")
    return {name for path in SOURCES for name in add.findall(path.read_text())}


def test_every_counter_behind_a_metric_is_counted_somewhere(counted: set[str]):
    assert {name for metric in metrics.COUNTERS for name in metric.counters} <= counted


def test_no_counter_is_left_out(counted: set[str]):
    shown = {name for name in counted for _ in metrics.samples({f"{name}{{a reason}}": 1})}
    assert shown == counted


def test_board_shows_what_there_is():
    board = json.loads(BOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked = {name for query in queries for name in NAME.findall(query)}
    assert asked <= ON_PAGE
    assert set(metrics.names()) <= {name.removesuffix("_bucket") for name in asked}, "a metric is on no panel"
    panels = [panel["id"] for panel in board["panels"]]
    assert len(set(panels)) == len(panels) and board["uid"] and board["schemaVersion"]
    assert all(query.count("(") == query.count(")") and query.count("{") == query.count("}") for query in queries)


def test_the_documentation_names_them():
    text = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert set(NAME.findall(text)) <= ON_PAGE
    assert set(metrics.names()) <= set(NAME.findall(text))
