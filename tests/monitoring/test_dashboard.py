"""The Grafana dashboard as a file: what Grafana needs to import it, and what a reader needs to understand it."""

import re
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from tests.monitoring.queries import ROOT, panels_of, queries_of, read_dashboard

DASHBOARD = read_dashboard()
PANELS = panels_of(DASHBOARD)
BY_TITLE = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
ROWS = {
    "Overview",
    "Batching",
    "Saturation",
    "Device",
    "Models and rollout",
    "Rejections and errors",
    "Traffic",
    "Shadow traffic",
}


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_it_has_a_fixed_uid_no_id_of_an_installation_and_the_current_schema() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["id"]) == ("sevenfold", None)
    assert DASHBOARD["schemaVersion"] >= 41


def test_ids_and_titles_are_unique() -> None:
    ids = Counter(panel["id"] for panel in DASHBOARD["panels"])
    titles = Counter(panel["title"] for panel in DASHBOARD["panels"])

    assert max(ids.values()) == 1
    assert max(titles.values()) == 1


def test_it_has_the_rows_that_the_documentation_lists() -> None:
    rows = {panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"}

    assert rows == ROWS
    documentation = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert all(f"**{row}**" in documentation for row in rows)


def test_panels_lie_within_the_grid_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]

    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


@BY_TITLE
def test_a_panel_has_a_unit_a_description_and_a_query(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["targets"]
    assert all(target["expr"] for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@BY_TITLE
def test_a_panel_with_several_lines_names_them(panel: dict[str, Any]) -> None:
    if panel["type"] == "timeseries":
        assert all(target["legendFormat"] for target in panel["targets"])


def test_the_data_source_is_a_variable_wherever_there_is_one() -> None:
    sources = [panel["datasource"] for panel in PANELS]
    sources += [target["datasource"] for panel in PANELS for target in panel["targets"]]
    variables = DASHBOARD["templating"]["list"]
    sources += [variable["datasource"] for variable in variables if variable["type"] == "query"]

    assert all(source == DATASOURCE for source in sources)
    assert variables[0]["name"] == "datasource"


def test_queries_use_only_variables_that_exist_and_all_of_them_are_used() -> None:
    used = set(re.findall(r"\$(\w+)", " ".join(query.expression for query in queries_of(PANELS))))
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}

    # "$1" is of label_replace.
    assert used - {"__rate_interval", "1"} == declared - {"datasource"}


def test_each_variable_offers_all_values_so_that_series_without_the_label_are_shown() -> None:
    variables = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]

    assert all(variable["allValue"] == ".*" and variable["includeAll"] for variable in variables)


def test_every_counter_is_read_as_a_rate_over_the_interval_that_grafana_chooses() -> None:
    fixed = [
        query.panel
        for query in queries_of(PANELS)
        if re.search(r"_total(\{[^}]*\})?\[(?!\$__rate_interval)", query.expression)
    ]

    assert fixed == []
