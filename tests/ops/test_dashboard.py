"""The dashboard file is generated from its panels, and Grafana can show it. test_watch.py runs its queries."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

from ops.dashboard.__main__ import FILE
from ops.dashboard.build import text
from ops.dashboard.panels import ROWS

PROVISIONING = FILE.parent / "provisioning"
BOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]


def test_the_file_is_what_the_panels_make() -> None:
    assert FILE.read_text() == text(ROWS), "run python -m ops.dashboard"


def test_panels_have_an_id_each_and_none_lies_on_another() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    overlaps = [
        (a["title"], b["title"]) for a, b in combinations(PANELS, 2) if overlap(a["gridPos"], b["gridPos"])
    ]
    assert overlaps == []
    assert all(p["gridPos"]["x"] >= 0 and p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in PANELS)


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return all(a[at] < b[at] + b[size] and b[at] < a[at] + a[size] for at, size in (("x", "w"), ("y", "h")))


def test_two_panels_on_one_place_are_caught() -> None:
    here = {"x": 0, "y": 0, "w": 8, "h": 7}
    assert overlap(here, {"x": 7, "y": 6, "w": 1, "h": 1})
    assert not overlap(here, {"x": 8, "y": 0, "w": 8, "h": 7})
    assert not overlap(here, {"x": 0, "y": 7, "w": 8, "h": 7})


def test_rows_are_what_an_operator_looks_for() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        "At a glance",
        "Traffic",
        "Latency",
        "Sharing",
        "Engines and breakers",
        "Waiting for an engine",
        "Limits and admission",
        "Embeddings and tokens",
        "Redis",
        "The fleet",
        "Process",
    ]


def test_every_query_asks_the_chosen_prometheus_with_variables_that_there_are() -> None:
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            used = set(re.findall(r"\$\{?(\w+)", target["expr"])) - {"__rate_interval"}
            assert used <= names, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_provisioned_prometheus_is_the_dashboards_first_choice() -> None:
    uid = re.search(r"uid: (\S+)", (PROVISIONING / "datasources" / "prometheus.yml").read_text())
    assert uid is not None
    assert BOARD["templating"]["list"][0]["current"]["value"] == uid[1]
    scraped = re.search(
        r"scrape_interval: (\S+)", Path(FILE.parent.parent / "prometheus/prometheus.yml").read_text()
    )
    told = re.search(r"timeInterval: (\S+)", (PROVISIONING / "datasources" / "prometheus.yml").read_text())
    assert scraped is not None
    assert told is not None
    assert scraped[1] == told[1], "$__rate_interval is made from it"
